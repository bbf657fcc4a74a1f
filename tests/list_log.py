"""A routing log and its feedback as lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from coe.records.record import Feedback, LogPage, LogQuery, RoutingRecord
from gateway.observability.observers import record_of
from gateway.request.trace import Trace


class ListLog:
    """Holds the records and the feedback of a gateway under test; `fails` is raised if it is set."""

    def __init__(self, records: list[RoutingRecord]) -> None:
        self.records = records
        self.events: list[Feedback] = []
        self.fails: Exception | None = None
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    def observe(self, trace: Trace) -> None:
        """Add the record of a finished request at once, without a writer."""
        self.records.append(record_of(trace))

    async def find(self, request_id: str) -> RoutingRecord | None:
        return next((record for record in self.records if record.request_id == request_id), None)

    async def back(self, query: LogQuery) -> LogPage:
        if self.fails:
            raise self.fails
        newest_first = list(enumerate(self.records))[: int(query.before.split("-")[0]) if query.before else None][::-1]
        found = [(place, record) for place, record in newest_first if query.matches(record)]
        page = found[: query.limit]
        return LogPage(tuple(record for _, record in page), str(page[-1][0]) if len(found) > len(page) else "")

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        known = set(keys)
        return tuple(event for event in self.events if event.request_id == request_id and event.key in known)

    async def append(self, events: Sequence[Feedback]) -> None:
        self.asked.set()
        await self.gate.wait()
        if self.fails:
            raise self.fails
        self.events += events
