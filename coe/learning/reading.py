"""Reads the routing log and the feedback beside it page by page, for jobs that are not on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from coe.feedback import Feedback, FeedbackLog, FeedbackPage
from coe.records import open_feedback, open_log
from coe.records.record import LogQuery, RoutingLog, RoutingRecord

PAGE = 2_000
"""Records or events in memory at a time."""


class Logs:
    """Both logs, opened; `damaged` counts the entries that were read so far and are no records, no events. Methods
    raise LogError."""

    def __init__(self, runner: asyncio.Runner, records: RoutingLog, feedback: FeedbackLog) -> None:
        self._runner, self._records, self._feedback = runner, records, feedback
        self.damaged = 0

    def records(
        self,
        *,
        since: float = 0.0,
        until: float,
        category: str = "",
        own: Callable[[RoutingRecord], object] | None = None,
    ) -> Iterator[tuple[RoutingRecord, ...]]:
        """Pages of the records of users' requests from `since` to `until` (Unix seconds), oldest first; none is empty.

        `own` receives each record of a request that a CoE command sent (`RoutingRecord.purpose`).
        """
        for page in self.all(since=since, until=until, category=category):
            if own is not None:
                for record in page:
                    if record.purpose:
                        own(record)
            if users := tuple(record for record in page if not record.purpose):
                yield users

    def all(self, *, since: float = 0.0, until: float, category: str = "") -> Iterator[tuple[RoutingRecord, ...]]:
        """The same with the requests of CoE commands among them."""
        query = LogQuery(since=since, category=category, limit=PAGE)
        while True:
            page = self._runner.run(self._records.read(query))
            self.damaged += page.damaged
            if kept := tuple(record for record in page.records if record.time <= until):
                yield kept
            if page.cursor == query.after or (page.records and not kept):
                return
            query = replace(query, after=page.cursor)

    def pages(self, *, after: str = "") -> Iterator[FeedbackPage]:
        """Pages of feedback after a cursor, in the order it was stored; none is empty."""
        while True:
            page = self._runner.run(self._feedback.read(after=after, limit=PAGE))
            self.damaged += page.damaged
            if page.cursor == after:
                return
            after = page.cursor
            yield page

    def feedback(self, *, since: float = 0.0) -> Iterator[tuple[Feedback, ...]]:
        """Pages of the events from `since` on, with which a request from then on may have been rated."""
        for page in self.pages():
            yield tuple(event for event in page.events if event.time >= since)


@contextmanager
def open_logs(url: str, *, base: Path) -> Iterator[Logs]:
    """The logs at `url`; relative paths start at `base`."""
    with asyncio.Runner() as runner:
        records, feedback = open_log(url, base=base), open_feedback(url, base=base)
        try:
            yield Logs(runner, records, feedback)
        finally:
            runner.run(feedback.aclose())
            runner.run(records.aclose())
