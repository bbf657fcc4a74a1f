"""What a LogQuery selects, for stores that cannot filter by themselves, and how large one page may be."""

from __future__ import annotations

from coe.core import LogQuery, RoutingRecord

PAGE = 10_000
"""Records in one page at most, whatever the query asks for."""


def page_size(query: LogQuery) -> int:
    """How many records the query gets: its limit, between 0 and PAGE."""
    return max(0, min(query.limit, PAGE))


def filters(query: LogQuery) -> bool:
    """Whether the query leaves any record out."""
    return bool(query.since or query.category or query.expert or query.outcome)


def matches(record: RoutingRecord, query: LogQuery) -> bool:
    """Whether the query wants this record; cursor and limit are the store's part."""
    return (
        record.time >= query.since
        and query.category in ("", record.category)
        and query.expert in ("", record.expert)
        and query.outcome in ("", record.outcome)
    )
