"""Rows of a SQLite log by a LogQuery: the conditions, and the one index that is walked."""

from __future__ import annotations

import math
import sqlite3
from typing import Literal

from coe.records.record import LogQuery
from coe.records.selection import named

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
    if query.until < math.inf:
        last = "(SELECT max(seq) FROM records INDEXED BY records_time WHERE time <= ?)"
        found += [("+time <= ?", query.until), (f"{seq} <= {last}", query.until)]
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
