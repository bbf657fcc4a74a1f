"""The routing log and its feedback in one SQLite file, for one machine: no server, several processes.

Rows of `records` hold the record as JSON and columns for the fields of LogQuery. A query walks exactly one index,
chosen here: without statistics SQLite may choose a bad one. A common value has no index of its own, as that would cost
every record a page (`LOG_TABLES`). `feedback` has one row per dedup key. A replacement is a
new row, so readers with a cursor get it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Literal

from coe.records.codec import COLUMNS, decode_or_none, encode
from coe.records.database import Database
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

MAX_SCANNED_BACK = 200_000
"""Rows that one backward call scans if no index finds the rows of the query."""
MIN_SELECTIVE_PREFIX = 6
"""Characters from which a prefix of an id matches so few rows that the index of ids is used."""

Row = tuple[int, bytes]
Condition = tuple[str, float | str]


def select(
    connection: sqlite3.Connection,
    query: LogQuery,
    *,
    after: int,
    before: int,
    order: Literal["ASC", "DESC"],
    size: int,
) -> list[Row]:
    """(seq, record) of the matching rows with `after` < seq < `before` (0: no upper bound).

    A plus before a column keeps SQLite from using its index.
    """
    by_id = len(query.request_id) >= MIN_SELECTIVE_PREFIX
    seq, plus = ("+seq", "+") if by_id else ("seq", "")
    bounds = [(f"{seq} > ?", after), *([(f"{seq} < ?", before)] if before else [])]
    named = [(f"{plus}{name} = ?", value) for name, value in exact_filters(query).items()]
    wanted = [*bounds, *_times(query, after, seq), *_prefix(query.request_id), *named]
    index, covers = ("", "") if by_id else _index(query)
    where = " AND ".join([*(condition for condition, _ in wanted), *([covers] if covers else [])])
    source = f"records {index} WHERE {where}"
    statement = f"SELECT seq, record FROM {source} ORDER BY seq {order} LIMIT ?"  # noqa: S608 (constants)
    return connection.execute(statement, (*(value for _, value in wanted), size)).fetchall()


def _index(query: LogQuery) -> tuple[str, str]:
    """The index for the exact filters of a query, and the condition of a partial one, which SQLite requires there."""
    if query.session:
        return "INDEXED BY records_session", ""
    if query.outcome and query.outcome != "ok":
        return "INDEXED BY records_outcome", "outcome <> 'ok'"
    if query.reason and query.reason != "routed":
        return "INDEXED BY records_reason", "reason <> 'routed'"
    return ("INDEXED BY records_filter" if exact_filters(query) else "NOT INDEXED"), ""


def scan_start(connection: sqlite3.Connection, query: LogQuery, *, after: int, before: int) -> int:
    """The row after which one backward call scans. A query with one filter and an index for it reads only rows that
    match; others may match no row at all, so the scan is bounded."""
    filters = len(exact_filters(query)) + bool(query.request_id)
    if filters < 2 and (query.request_id or _index(query)[0] != "INDEXED BY records_filter"):
        return after
    return max(after, (before or newest_row(connection) + 1) - MAX_SCANNED_BACK - 1)


def newest_row(connection: sqlite3.Connection, table: str = "records") -> int:
    return int(connection.execute(f"SELECT max(seq) FROM {table}").fetchone()[0] or 0)  # noqa: S608 (constants)


def _times(query: LogQuery, after: int, seq: str) -> list[Condition]:
    """Times rise with seq, except for small differences, so rows outside the interval are skipped without reading
    them."""
    found: list[Condition] = []
    if query.since:
        found.append(("+time >= ?", query.since))
        if not after:
            first = "(SELECT min(seq) FROM records INDEXED BY records_time WHERE time >= ?)"
            found.append((f"{seq} >= {first}", query.since))
    if query.until < math.inf:
        last = "(SELECT max(seq) FROM records INDEXED BY records_time WHERE time <= ?)"
        found += [("+time <= ?", query.until), (f"{seq} <= {last}", query.until)]
    return found


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

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        """Appends the records, all or none. Deletes those older than `days`, and at intervals the oldest beyond the
        retention. Raises StoreError."""

        def work(connection: sqlite3.Connection) -> None:
            for start in range(0, len(records), MAX_INSERT_ROWS):
                some = records[start : start + MAX_INSERT_ROWS]
                values: list[Any] = []
                for record in some:
                    values += _columns(record)
                    values.append(encode(record))
                last = connection.execute(_insert(len(some)), values).lastrowid or 0
            if last // self._trim_every != (last - len(records)) // self._trim_every:
                connection.execute(TRIM, (self._retention,))
            if self._days is not None:
                connection.execute(DELETE_OLD, (retention_start(self._days),))

        if records:
            await self._database.write(work)

    async def read(self, query: LogQuery) -> LogPage:
        (after, before), size = self._ends(query), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            rows = select(connection, query, after=after, before=before, order="ASC", size=size)
            seen = rows[-1][0] if len(rows) == size else max(after, newest_row(connection))
            return _page(rows, cursor=str(seen or ""))

        return await self._database.read(work) if size else LogPage((), query.after)

    async def tail(self, query: LogQuery) -> LogPage:
        (after, before), size = self._ends(query), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            rows = select(connection, query, after=after, before=before, order="DESC", size=size)
            return _page(rows[::-1], cursor=str(max(after, newest_row(connection)) or ""))

        return await self._database.read(work)

    async def back(self, query: LogQuery) -> LogPage:
        (after, before), size = self._ends(query), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            edge = scan_start(connection, query, after=after, before=before)
            rows = select(connection, query, after=edge, before=before, order="DESC", size=size + 1)
            if len(rows) > size:
                return _page(rows[:-1], cursor=str(rows[-2][0]))
            oldest = connection.execute("SELECT min(seq) FROM records").fetchone()[0] or 0
            return _page(rows, cursor=str(edge + 1) if edge > after and edge >= oldest else "")

        return await self._database.read(work) if size else LogPage((), query.before)

    async def find(self, request_id: str) -> RoutingRecord | None:
        def work(connection: sqlite3.Connection) -> RoutingRecord | None:
            row = connection.execute("SELECT record FROM records WHERE request_id = ?", (request_id,)).fetchone()
            return decode_or_none(row[0]) if row else None

        return await self._database.read(work)

    async def cursor_at(self, time: float) -> str:
        first = "SELECT min(seq) FROM records INDEXED BY records_time WHERE time >= ?"

        def work(connection: sqlite3.Connection) -> str:
            seq = connection.execute(first, (time,)).fetchone()[0]
            return str(newest_row(connection) if seq is None else seq - 1)

        return await self._database.read(work)

    async def count(self, after: str, before: str) -> int:
        place = str(self._database.path)
        return max(0, parse_cursor(before, place=place) - parse_cursor(after, place=place))  # row numbers have no gaps

    async def aclose(self) -> None:
        await self._database.aclose()

    def _ends(self, query: LogQuery) -> tuple[int, int]:
        """The row numbers of the query's cursors. Raises StoreError."""
        place = str(self._database.path)
        return parse_cursor(query.after, place=place), parse_cursor(query.before, place=place)


def _page(rows: Sequence[Row], *, cursor: str) -> LogPage:
    found = [decode_or_none(row[1]) for row in rows]
    records = tuple(record for record in found if record is not None)
    return LogPage(records, cursor, len(found) - len(records))


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

    async def append(self, events: Sequence[Feedback]) -> None:
        """Appends the events, all or none. Deletes events older than `days`, and at intervals those beyond the
        retention. Raises StoreError."""

        def work(connection: sqlite3.Connection) -> None:
            before = newest_row(connection, "feedback")
            connection.executemany(PUT, [(dedup_key(one), one.event_id, one.time, encode_event(one)) for one in events])
            connection.execute(DELETE_OLD_FEEDBACK, (retention_start(self._days),))
            if newest_row(connection, "feedback") // TRIM_EVERY > before // TRIM_EVERY:
                connection.execute(TRIM_FEEDBACK, (self._retention,))

        if events:
            await self._database.write(work)

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
