"""An append-only file of lines that the log cannot accept yet. It survives crashes, and processes may share it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from coe.errors import StoreError

MAX_BYTES = 1_000_000_000
"""Size of a full file, which accepts no more. Another file of this size may be on its way to the log."""


class Spool:
    """First in, first out. The methods block, and raise StoreError.

    Lines are appended to `path`. To deliver them, one process renames the file, locks it and reads it to its end. A
    crash before the end delivers the file again; the log knows its entries by their ids and ignores the repeated ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sent, self._lock = path.with_name(f"{path.name}.sending"), path.with_name(f"{path.name}.lock")
        self._file: BinaryIO | None = None
        self._delivered = self._read = 0
        """Positions in the file after the delivered lines, and after those that `oldest` returned."""

    def append(self, lines: Sequence[bytes]) -> None:
        """Add all lines or none; they are on disk on return."""
        content = memoryview(b"".join(b"\n" + line for line in lines))  # so a line that a crash cut off spoils no other
        with self._locked(), self.path.open("ab", buffering=0) as file:
            size = file.tell()
            if size + len(content) > MAX_BYTES:
                raise StoreError(f"{self.path}: full with {size} bytes that wait for the log")
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def oldest(self, count: int) -> list[bytes]:
        """The first `count` lines; none if no line waits, or while another process delivers them."""
        with self._locked():
            while (file := self._file or self._open()) is not None:
                file.seek(self._delivered)
                lines = [line.rstrip(b"\n") for line in islice(file, count)]
                self._read = file.tell()
                if lines:
                    return lines
                self._sent.unlink(missing_ok=True)
                self.close()
        return []

    def delivered(self) -> None:
        """Forget the lines that `oldest` returned, as the log has them."""
        self._delivered = self._read

    def close(self) -> None:
        """Let another process deliver the rest."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO | None:
        try:
            if not self._sent.exists():
                self.path.rename(self._sent)
            file = self._sent.open("rb")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        self._file, self._delivered = file, 1  # after the first line break
        return file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock.open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            remedy = "check that the disk has room and that the file may be written"
            raise StoreError(f"{self.path}: {error.strerror or error}; {remedy}") from error
