"""Mirrors what is in use for all gateways into this one's state folder, where `artifacts` names a Redis.

From there it is taken over like what is promoted here: `gateway/process/reload.py` watches the folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from coe.artifacts.redis import RedisArtifacts, mirror, share_at
from coe.artifacts.store import KINDS, ArtifactStore
from coe.errors import CoEError
from coe.learning.monitoring.traffic_report import FILE
from coe.registry import load
from coe.settings import Settings
from coe.supervision import supervised
from gateway.observability.metrics import Metrics

_log = logging.getLogger("gateway")

POLL = 1.0
"""Seconds between two looks."""
RETRY = 5.0
"""Seconds after one that failed, which may have fetched a damaged version."""

MAX_WHY = 500
"""Characters of a cause in the log."""


class Follower:
    """`behind` tells that what is shared cannot be taken over; what was in use serves on."""

    def __init__(self, settings: Settings, share: RedisArtifacts) -> None:
        self._share, self._artifacts = share, settings.artifacts
        self._stores = [ArtifactStore(settings.artifacts, kind, share) for kind in KINDS]
        self.behind = False
        self._said = ""

    def look(self) -> None:
        """Take over what is new. Does not fail."""
        try:
            mirror(self._stores)
            self._share.hear(FILE, self._artifacts)
        except Exception as error:  # whatever is shared, it is no reason to stop following
            self.behind = True
            why = str(error) if isinstance(error, CoEError | OSError) else repr(error)
            why = why[:MAX_WHY]
            if why != self._said:
                self._said = why
                _log.error("what is shared is not taken over, the last good state serves on: %s", why)
            return
        if self.behind:
            _log.warning("what is shared is taken over again")
        self.behind, self._said = False, ""

    async def run(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(RETRY if self.behind else POLL)

    def close(self) -> None:
        self._share.close()


def catch_up(settings: Settings) -> None:
    """One look, before anything is served: a new machine finds its router there. Raises ConfigError."""
    share = share_at(load(settings.config, environ=settings.environ).artifacts)
    if share is not None:
        follower = Follower(settings, share)
        follower.look()
        follower.close()


@asynccontextmanager
async def following(settings: Settings, address: str, metrics: Metrics) -> AsyncIterator[None]:
    """Looks in a task until the block ends, where `address` tells where. Raises ConfigError for one that cannot be."""
    share = share_at(address)
    follower = None if share is None else Follower(settings, share)
    behind = "1 while this gateway cannot take over what is in use for all of them."
    metrics.gauge("coe_artifacts_behind", behind, lambda: bool(follower and follower.behind), largest=True)
    if follower is None:
        yield
        return
    task = supervised(follower.run, "artifact-sync", task_failed=metrics.task_failed)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        follower.close()
