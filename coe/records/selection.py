"""What a LogQuery selects, for stores that cannot filter by themselves, and what pages, cursors and ages may be."""

from __future__ import annotations

import math
import time

from coe.errors import UnknownCursor
from coe.records.fields import COLUMNS
from coe.records.record import LogQuery, RoutingRecord

PAGE = 10_000
"""Records in one page at most, whatever the query asks for."""
DAY = 86_400.0
EXACT = tuple(name for name in COLUMNS if name not in ("request_id", "time"))
"""Record fields that a query compares for equality."""


def oldest_kept(days: float | None) -> float:
    """The Unix time before which nothing is kept, 0 where nothing is too old."""
    return 0.0 if days is None else max(0.0, time.time() - days * DAY)


def page_size(limit: int) -> int:
    """How many entries a page of that limit gets: between 0 and PAGE."""
    return max(0, min(limit, PAGE))


def position(cursor: str, *, place: str) -> int:
    """A cursor that is a number, 0 for none. Raises UnknownCursor for what no log at `place` gave."""
    if not cursor:
        return 0
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise UnknownCursor(f"{place}: {cursor!r} is no cursor of this log; start again without one")
    return int(cursor)


def named(query: LogQuery) -> dict[str, str]:
    """The fields that a record must have exactly, with their values."""
    return {name: value for name in EXACT if (value := getattr(query, name))}


def filters(query: LogQuery) -> bool:
    """Whether the query leaves any record out."""
    return bool(query.since or query.deadline < math.inf or query.request_id or named(query))


def matches(record: RoutingRecord, query: LogQuery) -> bool:
    """Whether the query wants this record; cursors and limit are the store's part."""
    return (
        query.since <= record.time <= query.deadline
        and record.request_id.startswith(query.request_id)
        and all(getattr(record, name) == value for name, value in named(query).items())
    )
