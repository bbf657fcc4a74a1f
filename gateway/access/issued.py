"""The issued API keys as one process knows them: read again every POLL_SECONDS, changed through the store.

A revoked key is refused after at most POLL_SECONDS and one read. A process that cannot read the store keeps the keys
for MAX_STALE_SECONDS, then refuses all issued keys: one of them may have been revoked in the meantime.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from coe.errors import StoreError
from coe.outage import Outage
from coe.registry import Registry
from coe.supervision import TaskFailed, supervised
from gateway.access.issued_keys import IssuedKeys, conflicts
from gateway.access.key_store import KeyStore, change

T = TypeVar("T")

POLL_SECONDS = 0.5
MAX_STALE_SECONDS = 300.0
_log = logging.getLogger("gateway")


class IssuedKeyWatch:
    """Holds the issued keys of a worker, and reads them again when the store has changed.

    `keys` includes revoked ones. `on_change` is called after a change.
    """

    def __init__(self, store: KeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._last_read = clock()
        self._reported: frozenset[str] = frozenset()
        self._lock = asyncio.Lock()
        self.keys: IssuedKeys = ()
        self.outage = Outage("issued API keys", f"; the known ones are accepted for {MAX_STALE_SECONDS:g} s")
        self.on_change: Callable[[], None] = lambda: None

    async def refresh(self) -> None:
        """Read the keys again if they changed. Does not fail."""
        async with self._lock:  # a read that began before a change must not undo it here
            try:
                keys = (await self._store.read()).keys
            except StoreError as error:
                self.outage.began(str(error))
                if self.keys and self._clock() - self._last_read > MAX_STALE_SECONDS:
                    _log.error("issued API keys could not be read for %g s, and are refused now", MAX_STALE_SECONDS)
                    self._apply(())
                return
            self.outage.ended()
            self._last_read = self._clock()
            self._apply(keys)

    async def change(self, decide: Callable[[IssuedKeys], tuple[T, IssuedKeys]]) -> T:
        """Change the stored keys with `gateway.access.key_store.change`. The change applies in this process at once."""
        async with self._lock:
            result, stored = await change(self._store, decide)
            self._apply(stored.keys)
            return result

    def report_conflicts(self, registry: Registry) -> None:
        """Log each issued key that a declared one excludes, once."""
        found = frozenset(conflicts(registry, self.keys, now=time.time()))
        for conflict in sorted(found - self._reported):
            _log.error("%s", conflict)
        self._reported = found

    async def run(self) -> None:
        """Read at intervals until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.refresh()

    def _apply(self, keys: IssuedKeys) -> None:
        if keys != self.keys:
            self.keys = keys
            self.on_change()


@asynccontextmanager
async def watching_issued_keys(store: KeyStore, *, task_failed: TaskFailed) -> AsyncIterator[IssuedKeyWatch]:
    """Read the keys once, then watch them in a task until the block ends."""
    watch = IssuedKeyWatch(store)
    await watch.refresh()
    task = supervised(watch.run, "issued-keys", task_failed=task_failed)
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.aclose()
