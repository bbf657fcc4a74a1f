"""The routing log and its feedback in one SQLite file, for one machine: no server, several processes.

Rows of `records` hold the record as JSON and columns for the fields of LogQuery. A query scans the index
`records_filter`, which grows at its end only, and reads the records of rows that match. `feedback` has one row per
dedup key. A replacement is a new row, so readers with a cursor get it.

`Database`: runs transactions on one SQLite file in one thread, and raises StoreError for every failure.

The routing log with its feedback, issued keys and their usage each have a `Database`. Several processes may use one
file at once (write-ahead log, busy timeout).
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

from coe.errors import StoreError
from coe.records.record import (
    COLUMNS,
    FEEDBACK,
    RECORD,
    Feedback,
    FeedbackPage,
    LogPage,
    LogQuery,
    RoutingRecord,
    dedup_keys,
    events_in_order,
    feedback_page,
    page_size,
    parse_cursor,
    retention_start,
)

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


VERSION = 4
"""Version of TABLES. Increase it when they change."""
TABLES = (
    """CREATE TABLE records (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL UNIQUE, time REAL NOT NULL,
        category TEXT NOT NULL, expert TEXT NOT NULL, reason TEXT NOT NULL, outcome TEXT NOT NULL, session TEXT,
        tenant TEXT, record BLOB NOT NULL
    )""",
    "CREATE INDEX records_time ON records (time)",
    f"CREATE INDEX records_filter ON records (seq, {', '.join(COLUMNS)})",
    """CREATE TABLE feedback (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, dedup_key BLOB NOT NULL UNIQUE, event_id TEXT NOT NULL,
        time REAL NOT NULL, event BLOB NOT NULL
    )""",
    "CREATE INDEX feedback_time ON feedback (time)",
)
MAX_SCANNED = 200_000
"""Rows that one call scans: some ten milliseconds, in which the thread serves no other call."""
MAX_TRIM_ROWS = 1_000
"""Rows between two deletions beyond the retention, at most a hundredth of it. Together they change far fewer pages."""

INSERT = f"INSERT OR IGNORE INTO records ({', '.join(COLUMNS)}, record) VALUES "  # noqa: S608
ROW = f"(?{', ?' * len(COLUMNS)})"
MAX_INSERT_ROWS = 32
"""Rows of one INSERT. Every statement hands the interpreter's lock over, for which the thread waits up to 5 ms while
requests are served: one statement a row would write some hundred rows a second."""
# A replacement is a new row, so that it comes at the end again.
PUT = """INSERT OR REPLACE INTO feedback (dedup_key, event_id, time, event)
SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (
    SELECT 1 FROM feedback WHERE dedup_key = ?1 AND (event_id = ?2 OR (time, event_id) > (?3, ?2))
)"""
TRIM = "DELETE FROM {0} WHERE seq <= (SELECT seq FROM {0} ORDER BY seq DESC LIMIT 1 OFFSET ?)"
ENDS = "SELECT ifnull((SELECT min(seq) FROM records), 1), ifnull((SELECT max(seq) FROM records), 0)"
_columns = attrgetter(*COLUMNS)


class _Table:
    """A table that grows at its end: the newest `retention` rows of the last `days` (None: of any age)."""

    name: str

    def __init__(self, database: Database, *, retention: int, days: float | None) -> None:
        self._database, self._retention, self._days = database, retention, days
        self._untrimmed = self._trim_every = max(1, min(MAX_TRIM_ROWS, retention // 100))

    async def _append(self, insert: Callable[[sqlite3.Connection], object], count: int) -> None:
        """Inserts all `count` rows or none, and deletes old ones: those beyond the retention at the first call and then
        at intervals, and those older than `days` each time. Raises StoreError."""
        self._untrimmed += count
        is_due = self._untrimmed >= self._trim_every

        def work(connection: sqlite3.Connection) -> None:
            insert(connection)
            if is_due:
                connection.execute(TRIM.format(self.name), (self._retention,))
            if self._days is not None:
                connection.execute(f"DELETE FROM {self.name} WHERE time < ?", (retention_start(self._days),))  # noqa: S608

        await self._database.write(work)
        if is_due:
            self._untrimmed = 0

    def _number(self, cursor: str) -> int:
        return parse_cursor(cursor, place=str(self._database.path))

    async def aclose(self) -> None:
        await self._database.aclose()


class SqliteLog(_Table):
    """A RoutingLog whose cursor is the row number. Writers are serialized, so rows appear in the order of their
    numbers."""

    name = "records"

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        def insert(connection: sqlite3.Connection) -> None:
            for start in range(0, len(records), MAX_INSERT_ROWS):
                part = records[start : start + MAX_INSERT_ROWS]
                values = [value for record in part for value in (*_columns(record), RECORD.encode(record))]
                connection.execute(INSERT + ", ".join([ROW] * len(part)), values)

        await self._append(insert, len(records))

    async def read(self, query: LogQuery) -> LogPage:
        rows, (_, last), _ = await self._scan(query, "ASC", size := page_size(query.limit))
        end = (rows[-1][0] if size else 0) if len(rows) == size else last
        return _page(rows, max(self._number(query.after), end))

    async def back(self, query: LogQuery) -> LogPage:
        rows, (first, last), oldest = await self._scan(query, "DESC", (size := page_size(query.limit)) + 1)
        cursor = first if first > oldest else 0
        if len(rows) > size:
            cursor = rows[size - 1][0] if size else self._number(query.before)
        return replace(_page(rows[:size], cursor), end=str(last))

    async def _scan(
        self, query: LogQuery, order: Literal["ASC", "DESC"], size: int
    ) -> tuple[list[tuple[int, bytes]], tuple[int, int], int]:
        """The first `size` matching rows in that order, the first and last row of the MAX_SCANNED that were scanned,
        and the oldest row between the cursors."""
        conditions = [(f"{name} = ?", value) for name, value in query.exact().items()]
        conditions += [("instr(request_id, ?) = 1", query.request_id)] if query.request_id else []
        times = (("time >= ?", query.since), ("time <= ?", query.until))
        conditions += [one for one in times if 0 < one[1] < math.inf]  # type: ignore[misc]
        where = " AND ".join(["seq BETWEEN ? AND ?", *(condition for condition, _ in conditions)])
        index = "INDEXED BY records_filter" if conditions else "NOT INDEXED"  # without statistics SQLite may err
        [ends] = await self._database.rows(ENDS)
        before = self._number(query.before)
        first, last = max(self._number(query.after) + 1, ends[0]), min(before - 1, ends[1]) if before else ends[1]
        part = (first, min(last, first + MAX_SCANNED - 1))
        part = part if order == "ASC" else (max(first, last - MAX_SCANNED + 1), last)
        statement = f"SELECT seq, record FROM records {index} WHERE {where} ORDER BY seq {order} LIMIT ?"  # noqa: S608
        rows = await self._database.rows(statement, *part, *(value for _, value in conditions), size)
        return rows, part, first

    async def find(self, request_id: str) -> RoutingRecord | None:
        rows = await self._database.rows("SELECT record FROM records WHERE request_id = ?", request_id)
        return RECORD.decode_or_none(rows[0][0]) if rows else None


def _page(rows: Sequence[tuple[int, bytes]], cursor: int) -> LogPage:
    records = tuple(record for _, line in rows if (record := RECORD.decode_or_none(line)) is not None)
    return LogPage(records, str(cursor or ""), len(rows) - len(records))


class SqliteFeedback(_Table):
    """A FeedbackLog whose cursor is the row number."""

    name = "feedback"

    async def append(self, events: Sequence[Feedback]) -> None:
        rows = [(one.dedup_key, one.event_id, one.time, FEEDBACK.encode(one)) for one in events]
        await self._append(lambda connection: connection.executemany(PUT, rows), len(events))

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        statement = "SELECT seq, event FROM feedback WHERE seq > ? ORDER BY seq LIMIT ?"
        rows = await self._database.rows(statement, self._number(after), page_size(limit))
        return feedback_page((event for _, event in rows), cursor=str(rows[-1][0]) if rows else after)

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        wanted = dedup_keys(request_id, keys)
        statement = f"SELECT event FROM feedback WHERE dedup_key IN ({', '.join('?' * len(wanted))})"  # noqa: S608
        return events_in_order(line for (line,) in await self._database.rows(statement, *wanted))
