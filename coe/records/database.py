"""One SQLite file behind one thread of its own: opened on first use, migrated by number, every failure a LogError.

The tables of a SQLite log, and the numbered steps that lead to them from whatever an earlier CoE left.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from coe.errors import LogError

T = TypeVar("T")
Migration = tuple[str, ...]

BUSY_SECONDS = 5.0
"""How long one statement waits for another process that is writing to the same file."""


class Database:
    """A file that several processes may read and write at once (write-ahead log, busy timeout).

    `migrations[n]` holds the statements that lead from user_version n to n + 1; existing entries never change. A file
    of a higher version than that is refused. After a failure the file is opened anew at the next call.
    """

    def __init__(self, path: Path, *, migrations: Sequence[Migration]) -> None:
        self.path = path
        self._migrations = migrations
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sqlite-{path.name}")
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in the thread, seeing one snapshot. Raises LogError."""
        return await self._run(work, begin="BEGIN")

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in the thread as one transaction, on disk when this returns. Raises LogError with nothing changed."""
        return await self._run(work, begin="BEGIN IMMEDIATE")

    async def aclose(self) -> None:
        """Close the file; later calls raise LogError. Waits for the call under way, at most a few BUSY_SECONDS."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T], *, begin: str) -> T:
        if self._closed:
            raise LogError(f"{self.path}: used after it was closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work, begin)

    def _transact(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        try:
            connection = self._connection or self._open()
            self._connection = connection
            connection.execute(begin)
            with connection:
                return work(connection)
        except (sqlite3.Error, OSError, UnicodeError) as error:
            self._close()
            raise LogError(
                f"{self.path}: {error}; check that the disk has room and that the file may be written"
            ) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            _into_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")  # one fsync a batch, and a power cut takes back no promise
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == len(self._migrations):
            return
        connection.execute("BEGIN IMMEDIATE")  # another process may be at it: look again under the lock
        with connection:
            version = _version(connection)
            if version > len(self._migrations):
                raise LogError(
                    f"{self.path}: written by a newer CoE (version {version}); upgrade this one or move the file"
                )
            for statements in self._migrations[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(self._migrations)}")

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _into_wal(connection: sqlite3.Connection) -> None:
    """SQLite's own timeout does not cover this switch: where two open a new file at once, one is refused at once."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)  # in the file's own thread
        else:
            return


# An index on one column also orders its rows by seq, so a filtered page needs no sorting. session, tenant and reason
# came later: their indexes leave out what has none, and cost nothing where nobody sends a session.
MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE records (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            request_id TEXT NOT NULL UNIQUE,
            time REAL NOT NULL,
            category TEXT NOT NULL,
            expert TEXT NOT NULL,
            outcome TEXT NOT NULL,
            record BLOB NOT NULL
        )""",
        "CREATE INDEX records_time ON records (time)",
        "CREATE INDEX records_category ON records (category)",
        "CREATE INDEX records_expert ON records (expert)",
        "CREATE INDEX records_outcome ON records (outcome)",
    ),
    (
        """CREATE TABLE feedback (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            slot BLOB NOT NULL UNIQUE,
            event_id TEXT NOT NULL,
            time REAL NOT NULL,
            event BLOB NOT NULL
        )""",
    ),
    ("CREATE INDEX feedback_time ON feedback (time)",),
    (  # some 20 µs a record, once: 10 s for 500,000, in which the others' records wait in their spools
        "ALTER TABLE records ADD COLUMN session TEXT",
        "ALTER TABLE records ADD COLUMN tenant TEXT",
        "ALTER TABLE records ADD COLUMN reason TEXT",
        """UPDATE records SET
            session = json_extract(CAST(record AS TEXT), '$.session'),
            tenant = json_extract(CAST(record AS TEXT), '$.tenant'),
            reason = json_extract(CAST(record AS TEXT), '$.reason')
        WHERE json_valid(CAST(record AS TEXT))""",
        "CREATE INDEX records_session ON records (session) WHERE session IS NOT NULL",
        "CREATE INDEX records_tenant ON records (tenant) WHERE tenant IS NOT NULL",
        "CREATE INDEX records_reason ON records (reason) WHERE reason IS NOT NULL",
    ),
)
"""Of the file, which holds the feedback too."""
