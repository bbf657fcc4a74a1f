"""The routing log and its feedback in one SQLite file, for one machine: no server, several processes.

Rows of `records` hold the record as JSON and columns for the fields of LogQuery. A query names its index, or
scans by seq: without statistics SQLite may choose a bad one. A common value has no index of its own, as each value of a
batch would then change a page (`LOG_TABLES`). Records and feedback share one thread, so a long scan takes several
transactions.
`feedback` has one row per dedup key. A replacement is a new row, so readers with a cursor get it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Literal

from coe.records.codec import COLUMNS, decode_or_none, encode
from coe.records.database import Database, first_and_last
from coe.records.feedback import (
    Feedback,
    FeedbackPage,
    decode_in_order,
    decode_page,
    dedup_key,
    dedup_keys,
    encode_event,
)
from coe.records.record import LogPage, LogQuery, RoutingRecord
from coe.records.selection import exact_filters, page_size, parse_cursor, retention_start
from coe.records.time_blocks import extend_blocks, first_since, last_until, trim_blocks

MAX_SCANNED = 200_000
"""Rows that one transaction scans if no index finds the rows of the query."""
MIN_SELECTIVE_PREFIX = 6
"""Characters from which a prefix of an id matches so few rows that the index of ids is used."""

Order = Literal["ASC", "DESC"]
Row = tuple[int, RoutingRecord | None]
"""The number of a row and its record, None if it is damaged."""
Condition = tuple[str, float | str]


def select(
    connection: sqlite3.Connection, query: LogQuery, *, first: int, last: int, order: Order, size: int
) -> list[Row]:
    """The matching rows among those from `first` to `last`, `size` at most.

    A plus before a column keeps SQLite from using its index.
    """
    seq, plus = ("+seq", "+") if _by_id(query) else ("seq", "")
    bounds: list[Condition] = [(f"{seq} >= ?", first), (f"{seq} <= ?", last)]
    named = [(f"{plus}{name} = ?", value) for name, value in exact_filters(query).items()]
    wanted = [*bounds, *_times(query), *_prefix(query.request_id), *named]
    index, covers = ("", "") if _by_id(query) else _index(query)
    where = " AND ".join([*(condition for condition, _ in wanted), *([covers] if covers else [])])
    source = f"records {index} WHERE {where}"
    statement = f"SELECT seq, record FROM {source} ORDER BY seq {order} LIMIT ?"  # noqa: S608 (constants)
    found = connection.execute(statement, (*(value for _, value in wanted), size)).fetchall()
    return [(number, decode_or_none(line)) for number, line in found]


def _by_id(query: LogQuery) -> bool:
    return len(query.request_id) >= MIN_SELECTIVE_PREFIX


def _index(query: LogQuery) -> tuple[str, str]:
    """The index for the exact filters of a query, and the condition of a partial one, which SQLite requires there."""
    if query.session:
        return "INDEXED BY records_session", ""
    if query.outcome and query.outcome != "ok":
        return "INDEXED BY records_outcome", "outcome <> 'ok'"
    if query.reason and query.reason != "routed":
        return "INDEXED BY records_reason", "reason <> 'routed'"
    return ("INDEXED BY records_filter" if exact_filters(query) else "NOT INDEXED"), ""


def row_range(connection: sqlite3.Connection, query: LogQuery, *, after: int, before: int) -> tuple[int, int]:
    """First and last row between the cursors (0: no cursor) that may match. The first is larger if there is none.

    Times rise with the row number, except for small differences, so most rows outside the interval are left out.
    """
    oldest, newest = first_and_last(connection, "records")
    first, last = max(after + 1, oldest), min(before - 1, newest) if before else newest
    if query.since and not after:
        since = first_since(connection, query.since)
        first = newest + 1 if since is None else max(first, since)
    if query.until < math.inf:
        last = min(last, last_until(connection, query.until) or 0)
    return first, last


def first_part(query: LogQuery, first: int, last: int, *, order: Order) -> tuple[int, int]:
    """The rows that one transaction scans first. All of them if the index yields only rows that match."""
    filters = len(exact_filters(query)) + bool(query.request_id)
    if _by_id(query) or not filters or (filters == 1 and _index(query)[0] not in SCANNED):
        return first, last
    if order == "ASC":
        return first, min(last, first + MAX_SCANNED - 1)
    return max(first, last - MAX_SCANNED + 1), last


def newest_row(connection: sqlite3.Connection, table: str = "records") -> int:
    return int(connection.execute(f"SELECT max(seq) FROM {table}").fetchone()[0] or 0)  # noqa: S608 (constants)


SCANNED = ("INDEXED BY records_filter", "NOT INDEXED")


def _times(query: LogQuery) -> list[Condition]:
    since: list[Condition] = [("+time >= ?", query.since)] if query.since else []
    return [*since, ("+time <= ?", query.until)] if query.until < math.inf else since


def _prefix(prefix: str) -> list[Condition]:
    """The index of ids does not order by seq, so it is used only where it yields few rows."""
    if not prefix:
        return []
    column = "request_id" if len(prefix) >= MIN_SELECTIVE_PREFIX else "+request_id"
    return [(f"{column} >= ?", prefix), (f"{column} < ?", prefix + "\U0010ffff")]


INSERT = f"INSERT OR IGNORE INTO records ({', '.join(COLUMNS)}, record) VALUES "  # noqa: S608 (constants)
_columns = attrgetter(*COLUMNS)
VALUES = f"({', '.join('?' * len(COLUMNS))}, ?)"
MAX_INSERT_ROWS = 32
"""Rows of one INSERT. The connection keeps the statements for all smaller numbers prepared too."""
MAX_TRIM_ROWS = 1_000
"""Rows between two deletions beyond the retention, at most a hundredth of it. Together they change far fewer pages."""
TRIM = "DELETE FROM records WHERE seq <= (SELECT max(seq) FROM records) - ?"
DELETE_OLD = "DELETE FROM records WHERE time < ?"


@cache
def _insert(rows: int) -> str:
    return INSERT + ", ".join([VALUES] * rows)


class SqliteLog:
    """A RoutingLog whose cursor is the row number. Writers are serialized, so rows appear in the order of their
    numbers."""

    def __init__(self, database: Database, *, retention: int, days: float | None) -> None:
        self._database = database
        self._retention, self._days = retention, days
        self._trim_every = max(1, min(MAX_TRIM_ROWS, retention // 100))
        self._trimmed = False  # the first append trims too: the retention may have been lowered

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        """Appends the records, all or none. The first call deletes the oldest beyond the retention, later ones at
        intervals. Each deletes those older than `days`. Raises StoreError."""

        def work(connection: sqlite3.Connection) -> None:
            for start in range(0, len(records), MAX_INSERT_ROWS):
                some = records[start : start + MAX_INSERT_ROWS]
                values: list[Any] = []
                for record in some:
                    values += _columns(record)
                    values.append(encode(record))
                connection.execute(_insert(len(some)), values)
            last = newest_row(connection)
            extend_blocks(connection, last, [record.time for record in records])
            if not self._trimmed or last // self._trim_every != (last - len(records)) // self._trim_every:
                connection.execute(TRIM, (self._retention,))
                trim_blocks(connection)
            if self._days is not None:
                connection.execute(DELETE_OLD, (retention_start(self._days),))

        if records:
            await self._database.write(work)
            self._trimmed = True

    async def read(self, query: LogQuery) -> LogPage:
        size = page_size(query.limit)
        if not size:
            return LogPage((), query.after)
        rows, newest = await self._scan(query, size, order="ASC")
        return _page(rows, cursor=str((rows[-1][0] if len(rows) == size else newest) or ""))

    async def tail(self, query: LogQuery) -> LogPage:
        rows, newest = await self._scan(query, page_size(query.limit), order="DESC")
        return _page(rows[::-1], cursor=str(newest or ""))

    async def back(self, query: LogQuery) -> LogPage:
        (after, before), size = self._ends(query), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            oldest, last = row_range(connection, query, after=after, before=before)
            first, last = first_part(query, oldest, last, order="DESC")
            rows = select(connection, query, first=first, last=last, order="DESC", size=size + 1)
            if len(rows) > size:
                return _page(rows[:-1], cursor=str(rows[-2][0]))
            return _page(rows, cursor=str(first) if first > oldest else "")

        return await self._database.read(work) if size else LogPage((), query.before)

    async def _scan(self, query: LogQuery, size: int, *, order: Order) -> tuple[list[Row], int]:
        """The first `size` matching rows in that order, and the newest row at the start of the scan or the cursor if
        that is later. Every part of a scan is a transaction, and other calls run between them."""
        after, before = self._ends(query)

        def limits(connection: sqlite3.Connection) -> tuple[int, int, int]:
            return *row_range(connection, query, after=after, before=before), newest_row(connection)

        def work(connection: sqlite3.Connection) -> list[Row]:
            return select(connection, query, first=low, last=high, order=order, size=size - len(rows))

        first, last, newest = await self._database.read(limits)
        rows: list[Row] = []
        while first <= last and len(rows) < size:
            low, high = first_part(query, first, last, order=order)
            rows += await self._database.read(work)
            first, last = (high + 1, last) if order == "ASC" else (first, low - 1)
        return rows, max(after, newest)

    async def find(self, request_id: str) -> RoutingRecord | None:
        def work(connection: sqlite3.Connection) -> RoutingRecord | None:
            row = connection.execute("SELECT record FROM records WHERE request_id = ?", (request_id,)).fetchone()
            return decode_or_none(row[0]) if row else None

        return await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()

    def _ends(self, query: LogQuery) -> tuple[int, int]:
        """The row numbers of the query's cursors. Raises StoreError."""
        place = str(self._database.path)
        return parse_cursor(query.after, place=place), parse_cursor(query.before, place=place)


def _page(rows: Sequence[Row], *, cursor: str) -> LogPage:
    records = tuple(record for _, record in rows if record is not None)
    return LogPage(records, cursor, len(rows) - len(records))


# A replacement is a new row, so that it comes at the end again.
PUT = """INSERT OR REPLACE INTO feedback (dedup_key, event_id, time, event)
SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (
    SELECT 1 FROM feedback WHERE dedup_key = ?1 AND (event_id = ?2 OR (time, event_id) > (?3, ?2))
)"""
TRIM_FEEDBACK = "DELETE FROM feedback WHERE seq <= (SELECT seq FROM feedback ORDER BY seq DESC LIMIT 1 OFFSET ?)"
TRIM_EVERY = 1_000  # events: to count rows costs a walk through them
DELETE_OLD_FEEDBACK = "DELETE FROM feedback WHERE time < ?"
SELECT = "SELECT seq, event FROM feedback WHERE seq > ? ORDER BY seq LIMIT ?"


class SqliteFeedback:
    """A FeedbackLog whose cursor is the row number."""

    def __init__(self, database: Database, *, retention: int, days: float | None) -> None:
        self._database = database
        self._retention, self._days = retention, days
        self._trimmed = False

    async def append(self, events: Sequence[Feedback]) -> None:
        """Appends the events, all or none. The first call deletes the oldest beyond the retention, later ones at
        intervals. Each deletes those older than `days`. Raises StoreError."""

        def work(connection: sqlite3.Connection) -> None:
            before = newest_row(connection, "feedback")
            connection.executemany(PUT, [(dedup_key(one), one.event_id, one.time, encode_event(one)) for one in events])
            connection.execute(DELETE_OLD_FEEDBACK, (retention_start(self._days),))
            if not self._trimmed or newest_row(connection, "feedback") // TRIM_EVERY > before // TRIM_EVERY:
                connection.execute(TRIM_FEEDBACK, (self._retention,))

        if events:
            await self._database.write(work)
            self._trimmed = True

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        start, size = parse_cursor(after, place=str(self._database.path)), page_size(limit)

        def work(connection: sqlite3.Connection) -> FeedbackPage:
            rows = connection.execute(SELECT, (start, size)).fetchall()
            return decode_page((event for _, event in rows), cursor=str(rows[-1][0]) if rows else after)

        return await self._database.read(work)

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        wanted = dedup_keys(request_id, keys)

        def work(connection: sqlite3.Connection) -> tuple[Feedback, ...]:
            lines = (
                connection.execute("SELECT event FROM feedback WHERE dedup_key = ?", (one,)).fetchone()
                for one in wanted
            )
            return decode_in_order(line[0] for line in lines if line)

        return await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()
