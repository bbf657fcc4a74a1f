"""Stores the name of the current version of an index in a file, and locks the index for one writer process at a time.

`coe.retrieval.lancedb.store` uses both. Searches only read the pointer, so they take no lock.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from coe.errors import RetrievalError

LOCK_TIMEOUT_SECONDS = 30.0
_POLL_SECONDS = 0.02


class VersionPointer:
    """A file that names the current version. It is replaced atomically, and read again only if it changed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._cached: tuple[tuple[int, int], str] | None = None

    def read(self) -> str | None:
        """Return the current version, None before the first."""
        try:
            status = self._file.stat()
            identity = (status.st_ino, status.st_mtime_ns)
            if self._cached is None or self._cached[0] != identity:
                self._cached = (identity, self._file.read_text().strip())
        except FileNotFoundError:
            return None
        return self._cached[1]

    def move(self, version: str) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(version)
        draft.replace(self._file)


@asynccontextmanager
async def write_lock(folder: Path) -> AsyncIterator[None]:
    """Hold the lock of the folder's writers. Raises RetrievalError after LOCK_TIMEOUT_SECONDS."""
    with _open_lock_file(folder) as lock:
        deadline = asyncio.get_running_loop().time() + LOCK_TIMEOUT_SECONDS
        while not _try_lock(lock.fileno()):
            if asyncio.get_running_loop().time() > deadline:
                raise RetrievalError(f"{folder}: another process is writing there; try again when it is done")
            await asyncio.sleep(_POLL_SECONDS)
        yield  # closing the file releases the lock


def _open_lock_file(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "writing.lock").open("w")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
