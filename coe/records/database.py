"""`Database`: runs transactions on one SQLite file in one thread, and raises StoreError for every failure.

The routing log with its feedback, issued keys and their usage each have a `Database`. Several processes may use one
file at once (write-ahead log, busy timeout).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from coe.errors import StoreError

T = TypeVar("T")

BUSY_SECONDS = 5.0
"""Seconds that one statement waits for another process that writes to the same file."""
_DAMAGED = "the file is damaged, or not one of SQLite's: restore a backup, or move it away with its -wal and -shm files"
_REMEDIES = {
    sqlite3.SQLITE_BUSY: f"another process has held the file for {BUSY_SECONDS:g} s: end its transaction",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
"""The remedy of an error, by SQLite's primary result code."""


class Database:
    """Runs transactions on a SQLite file in one thread. A new file is created with the SQL statements `tables`.

    Each kind of file has its own `version`, stored as user_version; files of other versions are refused. The file is
    opened at the first call, and again after a failure or if it was deleted or replaced. Unless `durable`, a power cut
    may lose the latest writes. With `private`, only its owner can read a new file.
    """

    def __init__(
        self, path: Path, *, tables: Sequence[str], version: int, durable: bool = True, private: bool = False
    ) -> None:
        self.path = path
        self._private = private
        self._synchronous = "FULL" if durable else "NORMAL"
        self._tables = tables
        self._version = version
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sqlite-{path.name}")
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        """Device and inode of the open file; None if it was just created. The next call then opens it again."""
        self._closed = False

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the thread on one snapshot of the data. Raises StoreError."""
        return await self._run(work, begin="BEGIN")

    async def rows(self, statement: str, *values: Any) -> list[Any]:
        """Run one SELECT in the thread and return its rows. Raises StoreError."""
        return await self.read(lambda connection: connection.execute(statement, values).fetchall())

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in the thread as one transaction, committed on return. Raises StoreError with nothing changed."""
        return await self._run(work, begin="BEGIN IMMEDIATE")

    def exists(self) -> bool:
        """Return True if the file exists. Raises StoreError if its folder may not be searched."""
        try:
            return _file_at(self.path) is not None
        except OSError as error:
            raise _store_error(self.path, error) from error

    async def aclose(self) -> None:
        """Close the file; later calls raise StoreError. Waits for the running call, at most a few BUSY_SECONDS."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T], *, begin: str) -> T:
        if self._closed:
            raise StoreError(f"{self.path}: used after it was closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work, begin)

    def _transact(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        try:
            if (file := _file_at(self.path)) is None or file != self._opened:
                self._close()
                self._opened = file
            connection = self._connection or self._open()
            self._connection = connection
            connection.execute(begin)
            with connection:
                return work(connection)
        except (sqlite3.Error, OSError, UnicodeError) as error:
            self._close()
            raise _store_error(self.path, error) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._private:
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            with suppress(sqlite3.OperationalError):  # busy: another process, which created the file, switches now
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")  # FULL: one fsync a batch
            self._create_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _create_tables(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == self._version:
            return
        connection.execute("BEGIN IMMEDIATE")  # another process may create them: check again under the lock
        with connection:
            version = _version(connection)
            if version == self._version:
                return
            if version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise StoreError(
                    f"{self.path}: written by another version of CoE (tables {version}, this one has {self._version});"
                    " move the file away, or use the CoE that wrote it"
                )
            for statement in self._tables:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {self._version}")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _store_error(path: Path, error: Exception) -> StoreError:
    """Return a StoreError that names the file, the problem and the remedy."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extension that names the cause
    remedy = _REMEDIES.get(code, "check that the disk has room and that the file may be written")
    problem = (error.strerror or error) if isinstance(error, OSError) else error  # str(error) would repeat the path
    return StoreError(f"{path}: {problem}; {remedy}")


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
