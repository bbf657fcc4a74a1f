"""The routing log in one SQLite file, for one machine: no server, several processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from coe.record import LogPage, LogQuery, RoutingRecord
from coe.records.codec import encode, intact
from coe.records.database import Database, Migration
from coe.records.selection import oldest_kept, page_size, position

# An index on one column also orders its rows by seq, so a filtered page needs no sorting.
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
)
"""Of the file, which holds the feedback too."""

INSERT = "INSERT OR IGNORE INTO records (request_id, time, category, expert, outcome, record) VALUES (?, ?, ?, ?, ?, ?)"
TOGETHER = 16
"""Rows a statement inserts: each takes the interpreter's lock from requests under way only once."""
INSERT_TOGETHER = INSERT + ", (?, ?, ?, ?, ?, ?)" * (TOGETHER - 1)
TRIM = "DELETE FROM records WHERE seq <= (SELECT max(seq) FROM records) - ?"
FORGET = "DELETE FROM records WHERE time < ?"


class SqliteLog:
    """A RoutingLog whose cursor is the row number. Writers take turns, so rows appear in the order of their numbers."""

    def __init__(self, path: Path, *, retention: int, days: float | None) -> None:
        self._database = Database(path, migrations=MIGRATIONS)
        self._retention, self._days = retention, days

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        """Add the records, all or none, and drop the oldest beyond retention and days. Raises LogError."""

        def work(connection: sqlite3.Connection) -> None:
            rows = [_row(record) for record in records]
            whole = len(rows) - len(rows) % TOGETHER
            connection.executemany(
                INSERT_TOGETHER, (sum(rows[i : i + TOGETHER], ()) for i in range(0, whole, TOGETHER))
            )
            connection.executemany(INSERT, rows[whole:])
            connection.execute(TRIM, (self._retention,))
            connection.execute(FORGET, (oldest_kept(self._days),))

        if records:
            await self._database.write(work)

    async def read(self, query: LogQuery) -> LogPage:
        """The next matching records after the cursor. Raises LogError."""
        after, size = position(query.after, place=str(self._database.path)), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            rows = _select(connection, query, after=after, order="ASC", size=size)
            seen = rows[-1][0] if len(rows) == size else max(after, _newest(connection))
            return _page(rows, cursor=str(seen or ""))

        return await self._database.read(work) if size else LogPage((), query.after)

    async def tail(self, query: LogQuery) -> LogPage:
        """The newest matching records; the cursor is the end of the log, for reading on from there. Raises LogError."""
        after, size = position(query.after, place=str(self._database.path)), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            rows = _select(connection, query, after=after, order="DESC", size=size)
            return _page(rows[::-1], cursor=str(max(after, _newest(connection)) or ""))

        return await self._database.read(work)

    async def find(self, request_id: str) -> RoutingRecord | None:
        """The record of that id. Raises LogError."""

        def work(connection: sqlite3.Connection) -> RoutingRecord | None:
            row = connection.execute("SELECT record FROM records WHERE request_id = ?", (request_id,)).fetchone()
            return intact(row[0]) if row else None

        return await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()


def _row(record: RoutingRecord) -> tuple[str, float, str, str, str, bytes]:
    return record.request_id, record.time, record.category, record.expert, record.outcome, encode(record)


def _page(rows: Sequence[tuple[int, bytes]], *, cursor: str) -> LogPage:
    found = [intact(row[1]) for row in rows]
    records = tuple(record for record in found if record is not None)
    return LogPage(records, cursor, len(found) - len(records))


def _select(
    connection: sqlite3.Connection, query: LogQuery, *, after: int, order: str, size: int
) -> list[tuple[int, bytes]]:
    wanted: list[tuple[str, float | str]] = [("seq > ?", after)]
    if query.since:
        wanted.append(("time >= ?", query.since))
        if not after:  # times rise with seq, all but a little, so this skips what is older without reading it
            wanted.append(
                ("seq >= (SELECT min(seq) FROM records INDEXED BY records_time WHERE time >= ?)", query.since)
            )
    wanted += [
        (f"{column} = ?", value)
        for column, value in (("category", query.category), ("expert", query.expert), ("outcome", query.outcome))
        if value
    ]
    where = " AND ".join(condition for condition, _ in wanted)
    select = f"SELECT seq, record FROM records WHERE {where} ORDER BY seq {order} LIMIT ?"  # noqa: S608 (our own words)
    return connection.execute(select, (*(value for _, value in wanted), size)).fetchall()


def _newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(seq) FROM records").fetchone()[0] or 0)
