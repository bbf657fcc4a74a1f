"""Which version of an index in a folder is in use, and who may write there: one process at a time."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from coe.errors import RetrievalError

PATIENCE = 30.0
"""Seconds that a writer waits for another one."""
_POLL = 0.02


class Pointer:
    """A file that names a version; replaced at once, read again only when it was."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read: tuple[tuple[int, int], str] | None = None

    def read(self) -> str | None:
        """The version in use, None before the first."""
        try:
            found = self._file.stat()
            look = (found.st_ino, found.st_mtime_ns)
            if self._read is None or self._read[0] != look:
                self._read = (look, self._file.read_text().strip())
        except FileNotFoundError:
            return None
        return self._read[1]

    def move(self, version: str) -> None:
        draft = self._file.with_suffix(".draft")
        draft.write_text(version)
        draft.replace(self._file)


@asynccontextmanager
async def writing(folder: Path) -> AsyncIterator[None]:
    """Entered by one writer at a time, of all processes. Raises RetrievalError after PATIENCE."""
    with _lock(folder) as lock:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not _taken(lock.fileno()):
            if asyncio.get_running_loop().time() > deadline:
                raise RetrievalError(f"{folder}: another process writes there for long; try again when it is done")
            await asyncio.sleep(_POLL)
        yield  # closing the file gives the lock back


def _lock(folder: Path) -> IO[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "writing.lock").open("w")


def _taken(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
