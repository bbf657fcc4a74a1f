"""The routing log and its feedback in one SQLite file, for one machine: no server, several processes.

Rows of `records` hold the record as JSON and columns for the fields of LogQuery. A query scans the index
`records_filter`, which grows at its end only, and reads the records of rows that match. `feedback` has one row per
dedup key. A replacement is a new row, so readers with a cursor get it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Literal

from coe.records.codec import FEEDBACK, RECORD, events_in_order, feedback_page
from coe.records.database import Database
from coe.records.feedback import Feedback, FeedbackPage, dedup_keys
from coe.records.record import (
    COLUMNS,
    LogPage,
    LogQuery,
    RoutingRecord,
    page_size,
    parse_cursor,
    retention_start,
)

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

INSERT = f"INSERT OR IGNORE INTO records ({', '.join(COLUMNS)}, record) VALUES (?{', ?' * len(COLUMNS)})"  # noqa: S608
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

    async def _append(self, statement: str, rows: Iterable[tuple[object, ...]], count: int) -> None:
        """Inserts all `count` rows or none, and deletes old ones: those beyond the retention at the first call and then
        at intervals, and those older than `days` each time. Raises StoreError."""
        self._untrimmed += count
        is_due = self._untrimmed >= self._trim_every

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, rows)
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
        await self._append(INSERT, ((*_columns(one), RECORD.encode(one)) for one in records), len(records))

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
        rows = ((one.dedup_key, one.event_id, one.time, FEEDBACK.encode(one)) for one in events)
        await self._append(PUT, rows, len(events))

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        statement = "SELECT seq, event FROM feedback WHERE seq > ? ORDER BY seq LIMIT ?"
        rows = await self._database.rows(statement, self._number(after), page_size(limit))
        return feedback_page((event for _, event in rows), cursor=str(rows[-1][0]) if rows else after)

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        wanted = dedup_keys(request_id, keys)
        statement = f"SELECT event FROM feedback WHERE dedup_key IN ({', '.join('?' * len(wanted))})"  # noqa: S608
        return events_in_order(line for (line,) in await self._database.rows(statement, *wanted))
