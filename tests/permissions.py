"""Folders that a process may not search, also where the tests run as root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65_534


@contextmanager
def without_access(folder: Path) -> Iterator[None]:
    """Take from this process the right to search the folder, until the block ends. Root becomes another user."""
    mode = folder.stat().st_mode
    is_root = os.geteuid() == 0
    folder.chmod(0)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(mode)
