"""Mirrors what is in use for all gateways into this one's state folder, where `artifacts` names a Redis.

From there it is taken over like what is promoted here: `gateway/process/reload.py` watches the folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from coe.artifacts.kinds import ARTIFACT_KINDS
from coe.artifacts.redis import RedisArtifacts, mirror, share_at
from coe.artifacts.store import ArtifactStore
from coe.errors import ArtifactError, CoEError
from coe.learning.monitoring.traffic_report import TRAFFIC_REPORT_FILE
from coe.registry import load
from coe.settings import Settings
from coe.supervision import TaskFailed, supervised
from coe.terminal import print_error

_log = logging.getLogger("gateway")

POLL = 1.0
"""Seconds between two looks."""
RETRY = 5.0
"""Seconds after one that failed, which may have fetched a damaged version."""

MAX_WHY = 500
"""Characters of a cause in the log."""


class ArtifactSync:
    """`behind` tells that what is shared cannot be taken over; what was in use serves on."""

    def __init__(self, settings: Settings, share: RedisArtifacts) -> None:
        self._share, self._artifacts = share, settings.artifacts
        self._stores = [ArtifactStore(settings.artifacts, kind, share) for kind in ARTIFACT_KINDS]
        self.behind = False
        self._said = ""

    def look(self) -> None:
        """Take over what is new. Does not fail."""
        try:
            mirror(self._stores)
            self._share.hear(TRAFFIC_REPORT_FILE, self._artifacts)
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
        follower = ArtifactSync(settings, share)
        follower.look()
        follower.close()


@asynccontextmanager
async def following(settings: Settings, address: str, *, task_failed: TaskFailed) -> AsyncIterator[Callable[[], bool]]:
    """Mirrors the shared artifacts in a task until the block ends, where `address` names a Redis.

    Yields a function that returns whether this gateway is behind the shared state. Raises ConfigError for a bad
    address.
    """
    share = share_at(address)
    follower = None if share is None else ArtifactSync(settings, share)
    if follower is None:
        yield lambda: False
        return
    task = supervised(follower.run, "artifact-sync", task_failed=task_failed)
    try:
        yield lambda: follower.behind
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        follower.close()


def caught_up(settings: Settings) -> RedisArtifacts | None:
    """Where `artifacts` says that what is in use is shared, after what is so elsewhere is so here; None where it is not
    shared. Raises ArtifactError where that cannot be found out, since what is done next would be undone by it."""
    share = share_at(load(settings.config, environ=settings.environ).artifacts)
    if share is not None:
        mirror([ArtifactStore(settings.artifacts, kind, share) for kind in ARTIFACT_KINDS])
    return share


def store_of(settings: Settings, kind: str) -> ArtifactStore:
    """The artifacts of a kind, caught up with other machines as far as that can be: a version that is damaged there
    must not keep another from being promoted, and where Redis is away nothing can be."""
    try:
        return ArtifactStore(settings.artifacts, kind, caught_up(settings))
    except ArtifactError as error:
        print_error(f"note: {error}")
        share = share_at(load(settings.config, environ=settings.environ).artifacts)
        return ArtifactStore(settings.artifacts, kind, share)
