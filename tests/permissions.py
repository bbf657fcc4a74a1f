"""Denies the test process access to a folder, also if the tests run as root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNPRIVILEGED_UID = 65_534


@contextmanager
def without_access(folder: Path) -> Iterator[None]:
    """Deny this process access to the folder until the block ends. Root becomes another user for that time."""
    mode = folder.stat().st_mode
    is_root = os.geteuid() == 0
    folder.chmod(0)
    try:
        if is_root:
            os.seteuid(UNPRIVILEGED_UID)
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(mode)
