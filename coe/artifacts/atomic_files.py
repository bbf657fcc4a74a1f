"""Writes files that survive a power cut: whole or not at all, and on disk on return."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a small file in one step, on disk on return: readers see the old content or the new one."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def sync_and_hash(path: Path) -> str:
    """The file's SHA-256, after its contents are on disk: a power cut must not leave half of a file that a manifest
    names."""
    sync(path)
    return sha256(path)


def sync(path: Path) -> None:
    """Flushes a file or folder to disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
