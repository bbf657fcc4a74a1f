"""The routing log in one SQLite file, for one machine: no server, several processes.

Rows of a SQLite log by a LogQuery: the conditions, and the one index that is walked.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Literal

from coe.records.codec import encode, intact
from coe.records.database import MIGRATIONS, Database
from coe.records.fields import COLUMNS
from coe.records.record import LogPage, LogQuery, RoutingRecord
from coe.records.selection import named, oldest_kept, page_size, position

SCAN = 200_000
"""Rows that a walk backward by several fields goes past in one call, at most."""
COUNTED = 5_000
"""Rows of an index that are counted to find the rarest of the values that a query names."""
LONG = 6
"""Characters from which on the beginning of an id leaves so few that they are found by the id's own index."""

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
    """(seq, record) of the matching rows between `after` and `before` (0: no end), both left out.

    A plus before a column keeps SQLite from walking its index: without statistics it may choose a bad one.
    """
    seq = "+seq" if len(query.request_id) >= LONG else "seq"
    bounds = [(f"{seq} > ?", after), *([(f"{seq} < ?", before)] if before else [])]
    wanted = [*bounds, *_times(query, after, seq), *_prefix(query.request_id), *_named(connection, query)]
    where = " AND ".join(condition for condition, _ in wanted)
    statement = f"SELECT seq, record FROM records WHERE {where} ORDER BY seq {order} LIMIT ?"  # noqa: S608 (our words)
    return connection.execute(statement, (*(value for _, value in wanted), size)).fetchall()


def window(connection: sqlite3.Connection, query: LogQuery, *, after: int, before: int) -> int:
    """The row after which a walk backward looks in one call: one index alone leads to its rows, several fields together
    may be met nowhere."""
    if len(named(query)) + bool(query.request_id) < 2:
        return after
    return max(after, (before or newest(connection) + 1) - SCAN - 1)


def newest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(seq) FROM records").fetchone()[0] or 0)


def oldest(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT min(seq) FROM records").fetchone()[0] or 0)


def _times(query: LogQuery, after: int, seq: str) -> list[Condition]:
    """Times rise with seq, all but a little, so the rows outside are skipped without reading them."""
    found: list[Condition] = []
    if query.since:
        found.append(("+time >= ?", query.since))
        if not after:
            first = "(SELECT min(seq) FROM records INDEXED BY records_time WHERE time >= ?)"
            found.append((f"{seq} >= {first}", query.since))
    if query.deadline < math.inf:
        last = "(SELECT max(seq) FROM records INDEXED BY records_time WHERE time <= ?)"
        found += [("+time <= ?", query.deadline), (f"{seq} <= {last}", query.deadline)]
    return found


def _prefix(prefix: str) -> list[Condition]:
    """The index of ids does not order by seq, so it is for few rows."""
    if not prefix:
        return []
    column = "request_id" if len(prefix) >= LONG else "+request_id"
    return [(f"{column} >= ?", prefix), (f"{column} < ?", prefix + "\U0010ffff")]


def _named(connection: sqlite3.Connection, query: LogQuery) -> list[Condition]:
    """Of several values the rarest leads to the rows, the others are looked at there."""
    values = named(query)
    leader = min(values, key=lambda name: _count(connection, name, values[name]), default=None)
    if len(query.request_id) >= LONG:
        leader = None
    return [(f"{name} = ?" if name == leader else f"+{name} = ?", value) for name, value in values.items()]


def _count(connection: sqlite3.Connection, column: str, value: str) -> int:
    """How many rows have that value, COUNTED for more."""
    few = f"SELECT count(*) FROM (SELECT 1 FROM records WHERE {column} = ? LIMIT ?)"  # noqa: S608 (our own words)
    return int(connection.execute(few, (value, COUNTED)).fetchone()[0])


INSERT = f"INSERT OR IGNORE INTO records ({', '.join(COLUMNS)}, record) VALUES "  # noqa: S608 (our own words)
_columns = attrgetter(*COLUMNS)
VALUES = f"({', '.join('?' * len(COLUMNS))}, ?)"
TOGETHER = 8
"""Rows that a statement inserts at most: some .3 ms in which its thread may keep a core that a request waits for. The
connection keeps those of all shorter lengths prepared too."""
PAUSE = 0.0001
"""Seconds between two statements, in which that request gets the core: else the system would let the batch end."""
CROWD = 64
"""Rows of a batch beyond which they are too many for that: then so many a statement, and no pause."""
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
            crowded = len(rows) > CROWD
            step = CROWD if crowded else TOGETHER
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                if start and not crowded:
                    time.sleep(PAUSE)  # in the file's own thread
                connection.execute(INSERT + ", ".join([VALUES] * len(some)), tuple(chain.from_iterable(some)))
            connection.execute(TRIM, (self._retention,))
            connection.execute(FORGET, (oldest_kept(self._days),))

        if records:
            await self._database.write(work)

    async def read(self, query: LogQuery) -> LogPage:
        """The next matching records after the cursor. Raises LogError."""
        (after, before), size = self._ends(query), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            rows = select(connection, query, after=after, before=before, order="ASC", size=size)
            seen = rows[-1][0] if len(rows) == size else max(after, newest(connection))
            return _page(rows, cursor=str(seen or ""))

        return await self._database.read(work) if size else LogPage((), query.after)

    async def tail(self, query: LogQuery) -> LogPage:
        """The newest matching records; the cursor is the end of the log, for reading on from there. Raises LogError."""
        (after, before), size = self._ends(query), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            rows = select(connection, query, after=after, before=before, order="DESC", size=size)
            return _page(rows[::-1], cursor=str(max(after, newest(connection)) or ""))

        return await self._database.read(work)

    async def back(self, query: LogQuery) -> LogPage:
        """The matching records before the cursor, newest first. Raises LogError."""
        (after, before), size = self._ends(query), page_size(query.limit)

        def work(connection: sqlite3.Connection) -> LogPage:
            edge = window(connection, query, after=after, before=before)
            rows = select(connection, query, after=edge, before=before, order="DESC", size=size + 1)
            if len(rows) > size:
                return _page(rows[:-1], cursor=str(rows[-2][0]))
            more = edge > after and edge >= oldest(connection)
            return _page(rows, cursor=str(edge + 1) if more else "")

        return await self._database.read(work) if size else LogPage((), query.before)

    async def find(self, request_id: str) -> RoutingRecord | None:
        """The record of that id. Raises LogError."""

        def work(connection: sqlite3.Connection) -> RoutingRecord | None:
            row = connection.execute("SELECT record FROM records WHERE request_id = ?", (request_id,)).fetchone()
            return intact(row[0]) if row else None

        return await self._database.read(work)

    async def aclose(self) -> None:
        await self._database.aclose()

    def _ends(self, query: LogQuery) -> tuple[int, int]:
        """The rows that its cursors stand for. Raises LogError."""
        place = str(self._database.path)
        return position(query.after, place=place), position(query.before, place=place)


def _row(record: RoutingRecord) -> tuple[str | float | bytes | None, ...]:
    return (*_columns(record), encode(record))


def _page(rows: Sequence[Row], *, cursor: str) -> LogPage:
    found = [intact(row[1]) for row in rows]
    records = tuple(record for record in found if record is not None)
    return LogPage(records, cursor, len(found) - len(records))
