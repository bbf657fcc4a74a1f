"""`BoundWatch`: polls the feedback log for audit results, and publishes the recipes whose quality loss exceeds
`max_loss`. Such recipes no longer stop early.

One worker of a gateway runs it as a background task. `gateway.process.reload` watches the published file, here and on
machines that share artifacts. While no recipe in use has a bound, the log is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from coe.errors import ArtifactError, StoreError
from coe.learning.monitoring.loss_bounds import LOSS_BOUNDS_FILE, LossBounds, publish_broken
from coe.outage import Outage
from coe.records.feedback import FeedbackLog
from coe.settings import Settings
from coe.supervision import TaskFailed, supervised
from gateway.serving_state import ServingState

POLL_SECONDS = 15.0
"""Interval of polls of the log."""
PAGE_EVENTS = 200
"""Events of one page: parsing them holds up the event loop for about a millisecond."""


class BoundWatch:
    """Polls the feedback log. `bounds` are the loss bounds of the policies in use, up to the last poll."""

    def __init__(self, current: ServingState, feedback: FeedbackLog, settings: Settings) -> None:
        self._current = current
        self._feedback = feedback
        self._settings = settings
        self._cursor = ""
        self._outage = Outage("loss bounds")
        self.bounds: LossBounds | None = None

    async def run(self) -> None:
        """Read at intervals until cancelled. If the log is unavailable, the next interval reads it."""
        while True:
            with suppress(StoreError):  # its writers report it
                await self.read()
            await asyncio.sleep(POLL_SECONDS)

    async def read(self) -> None:
        """Count new audits and publish broken bounds. Raises StoreError."""
        serving = self._current.serving
        fresh = LossBounds(serving.registry, serving.policies)
        if self.bounds is None or fresh.identity != self.bounds.identity:
            self.bounds, self._cursor = fresh, ""
        if not self.bounds.by_recipe:
            return
        while True:
            page = await self._feedback.read(after=self._cursor, limit=PAGE_EVENTS)
            self.bounds.add(page.events)
            if page.cursor == self._cursor:
                break
            self._cursor = page.cursor
        if self.bounds.broken:
            await self._publish(self.bounds)

    async def _publish(self, bounds: LossBounds) -> None:
        """Publish the broken bounds. After a failure the next poll publishes them."""
        try:
            await asyncio.to_thread(publish_broken, self._settings, bounds)
        except ArtifactError as error:
            self._outage.began(f"broken ones are not shared with other machines yet: {error}")
        except OSError as error:
            self._outage.began(
                f"that of {', '.join(sorted(bounds.broken))} is broken, but takes no effect until "
                f"{self._settings.artifacts / LOSS_BOUNDS_FILE} can be written: {error.strerror}; check that the disk "
                "has room and that the file may be written"
            )
        else:
            self._outage.ended()

    def evidence(self) -> dict[tuple[str, ...], float]:
        """The largest capital of each test by recipe, for a gauge."""
        found = self.bounds.by_recipe if self.bounds else {}
        return {(name,): bound.test.largest for name, bound in found.items()}


@asynccontextmanager
async def watching_bounds(watch: BoundWatch, *, task_failed: TaskFailed) -> AsyncIterator[None]:
    """Run the watch in a task until the block ends."""
    task = supervised(watch.run, "loss-bounds", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
