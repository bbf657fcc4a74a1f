"""Writes files atomically and durably: after a power cut, a file has its old or its new content, never a part of it.

`replace_file` writes a draft, flushes it to disk and renames it over the file. It holds the content in memory, so it is
for small files. `sync_and_hash` flushes a file that already exists.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replaces a small file atomically: readers see the old or the new content. The new one is on disk on return, with
    the permissions `mode`, by default those of a new file. An error, such as a full disk, leaves no draft behind."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with draft.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    sync(path.parent)


def sync_and_hash(path: Path) -> str:
    """Flushes a file to disk and returns its SHA-256. After a power cut, a manifest therefore names no half-written
    file."""
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
