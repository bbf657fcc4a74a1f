"""Filters, page sizes, cursors and retention that the SQLite and the Redis log share."""

from __future__ import annotations

import time

from coe.errors import UnknownCursor
from coe.records.record import COLUMNS, LogQuery, RoutingRecord

MAX_PAGE_RECORDS = 10_000
"""Largest number of records in one page, even if the query requests more."""
DAY = 86_400.0


def retention_start(days: float | None) -> float:
    """The Unix time before which records are deleted; 0 if `days` is None."""
    return 0.0 if days is None else max(0.0, time.time() - days * DAY)


def page_size(limit: int) -> int:
    """The number of entries in a page of that limit: between 0 and MAX_PAGE_RECORDS."""
    return max(0, min(limit, MAX_PAGE_RECORDS))


def parse_cursor(cursor: str, *, place: str) -> int:
    """A numeric cursor, 0 for an empty one. Raises UnknownCursor for any other text; `place` names the log."""
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise UnknownCursor(f"{place}: {cursor!r} is not a cursor of this log; start again without one")
    return int(cursor or 0)


def exact_filters(query: LogQuery) -> dict[str, str]:
    """The fields that a record must have exactly, with their values."""
    names = (name for name in COLUMNS if name not in ("request_id", "time"))
    return {name: value for name in names if (value := getattr(query, name))}


def matches(record: RoutingRecord, query: LogQuery) -> bool:
    """Returns True if a record matches the query; the store applies cursors and limit."""
    return (
        query.since <= record.time <= query.until
        and record.request_id.startswith(query.request_id)
        and all(getattr(record, name) == value for name, value in exact_filters(query).items())
    )
