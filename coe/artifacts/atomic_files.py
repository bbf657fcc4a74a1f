"""Files that outlast a power cut: written whole or not at all, and on disk when it is said so."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file in one step, on disk when this returns: readers see the old one or the new one."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def sealed(path: Path) -> str:
    """The file's SHA-256, once its contents are on disk: a power cut must not leave half of what a manifest names."""
    sync(path)
    return sha256(path)


def sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
