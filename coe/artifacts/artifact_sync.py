"""Copies the shared promoted versions from Redis into the local state folder, if `artifacts` is a Redis address.

From there they are reloaded like local promotions: `gateway/process/reload.py` watches the folder. The gateway syncs in
a task; commands sync once before they change anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from coe.artifacts.manifest import ARTIFACT_KINDS
from coe.artifacts.redis import TRAFFIC_REPORT_FILE, RedisArtifacts, open_shared
from coe.artifacts.store import ArtifactStore, mirror
from coe.errors import ArtifactError, CoEError
from coe.outage import Outage
from coe.registry import load
from coe.settings import Settings
from coe.supervision import TaskFailed, supervised
from coe.terminal import print_error

POLL_SECONDS = 1.0
"""Interval of syncs."""
RETRY_SECONDS = 5.0
"""Pause after a failed sync, which may have fetched a damaged version."""

MAX_CAUSE_CHARACTERS = 500
"""Characters of a cause in the log."""


class ArtifactSync:
    """Copies new shared versions into the local state folder at intervals. During an outage the previous ones stay in
    use."""

    def __init__(self, settings: Settings, share: RedisArtifacts) -> None:
        self._settings, self._share = settings, share
        self.outage = Outage("shared artifacts", "; the last good state stays in service")

    def sync(self) -> None:
        """Copies new versions and files. Never raises."""
        try:
            _mirror(self._settings, self._share)
            self._share.fetch_file(TRAFFIC_REPORT_FILE, self._settings.artifacts)
        except Exception as error:  # a bad shared artifact must not end the sync loop
            cause = str(error) if isinstance(error, CoEError | OSError) else repr(error)
            self.outage.began(cause[:MAX_CAUSE_CHARACTERS])
        else:
            self.outage.ended()

    async def run(self) -> None:
        """Syncs at intervals until cancelled."""
        while True:
            await asyncio.to_thread(self.sync)
            await asyncio.sleep(RETRY_SECONDS if self.outage.active else POLL_SECONDS)


def sync_once(settings: Settings) -> None:
    """One sync before anything is served, so that a new machine finds its router. Raises ConfigError."""
    if share := open_declared(settings):
        ArtifactSync(settings, share).sync()
        share.close()


@asynccontextmanager
async def sync_artifacts(
    settings: Settings, address: str, *, task_failed: TaskFailed
) -> AsyncIterator[Callable[[], bool]]:
    """Syncs in a task until the block ends, if `address` names a Redis.

    Yields a function that returns whether this gateway is behind. Raises ConfigError for an invalid address.
    """
    if (share := open_shared(address)) is None:
        yield lambda: False
        return
    artifact_sync = ArtifactSync(settings, share)
    task = supervised(artifact_sync.run, "artifact-sync", task_failed=task_failed)
    try:
        yield lambda: artifact_sync.outage.active
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        share.close()


def open_declared(settings: Settings) -> RedisArtifacts | None:
    """The Redis that experts.yaml declares for artifacts; None for a folder. Raises ConfigError."""
    return open_shared(load(settings.config, environ=settings.environ).artifacts)


def _mirror(settings: Settings, share: RedisArtifacts) -> None:
    mirror([ArtifactStore(settings.artifacts, kind, share) for kind in ARTIFACT_KINDS])


def synced_share(settings: Settings) -> RedisArtifacts | None:
    """The shared artifacts after a sync; None if `artifacts` is a folder. Raises ArtifactError if the sync fails, since
    it would later undo what the caller does next."""
    if share := open_declared(settings):
        _mirror(settings, share)
    return share


def synced_store(settings: Settings, kind: str) -> ArtifactStore:
    """The store of one kind, synced as far as possible. A damaged shared version must not prevent the promotion of
    another one."""
    try:
        return ArtifactStore(settings.artifacts, kind, synced_share(settings))
    except ArtifactError as error:
        print_error(f"note: {error}")
        return ArtifactStore(settings.artifacts, kind, open_declared(settings))
