"""`SharedCache`: values that may be lost. Lookups wait briefly, writes happen in the background, and no call fails.

The answer cache and the experts of conversations (affinity) each have one over a SharedStore.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

from coe.outage import Outage
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.shared_store import SharedStore

MAX_PENDING_BYTES = 16 * 2**20
"""Bytes of values that wait to be written; further values are dropped."""
PENDING_OVERHEAD_BYTES = 256
RETRY_SECONDS = 1.0
"""Interval of attempts to use a store that failed."""
_PROBE = "probe"
"""Name of the value that is written to find out whether the store works."""
_PROBE_TTL_SECONDS = 60.0


class SharedCache:
    """A cache over `store`, which it closes, and an async context manager.

    `wait` bounds a lookup in seconds; `delay` are the seconds in which writes are collected. While the store fails,
    lookups find nothing and values are dropped. It is in use again once it accepts a write.
    """

    def __init__(
        self,
        store: SharedStore,
        outage: Outage,
        *,
        task: str,
        wait: float,
        delay: float = 0.0,
        task_failed: TaskFailed = ignore_failure,
    ) -> None:
        self.outage = outage
        self._store = store
        self._wait, self._delay = wait, delay
        self._task_name, self._task_failed = task, task_failed
        self._pending: dict[str, tuple[bytes, float]] = {}
        self._writing: dict[str, tuple[bytes, float]] = {}
        self.pending_bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, self._task_name, task_failed=self._task_failed)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Writes what is pending, as far as the store works."""
        assert self._task
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._pending and not self.outage.active:
            await self._write()
        await self._store.aclose()

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values, also those that wait to be written; None for what is missing or comes too late."""
        if self.outage.active:
            return [None] * len(names)
        waiting = [(self._pending.get(name) or self._writing.get(name) or (None, 0.0))[0] for name in names]
        if None not in waiting:
            return waiting
        lookup = asyncio.ensure_future(self._lookup(names))
        await asyncio.wait((lookup,), timeout=self._wait)
        if not lookup.done():
            return waiting
        return [found if own is None else own for own, found in zip(waiting, lookup.result(), strict=True)]

    def put(self, name: str, value: bytes, *, ttl: float) -> None:
        """Store the value soon."""
        size = len(value) + PENDING_OVERHEAD_BYTES
        if self.outage.active or self.pending_bytes + size > MAX_PENDING_BYTES:
            return
        self._pending[name] = value, ttl
        self.pending_bytes += size
        self._wake.set()

    async def _lookup(self, names: Sequence[str]) -> list[bytes | None]:
        try:
            return await self._store.get(names)
        except Exception as error:  # a lost value must not fail a request
            self._fail(error)
            return [None] * len(names)

    def _fail(self, error: Exception) -> None:
        self.outage.began(str(error))
        self._wake.set()

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        await self._write()  # connects now
        while True:
            await self._wake.wait()
            await asyncio.sleep(RETRY_SECONDS if self.outage.active else self._delay)
            self._wake.clear()
            await self._write()

    async def _write(self) -> None:
        """Writes what is pending, or a probe. Does not fail."""
        self._writing, self._pending, self.pending_bytes = self._pending, {}, 0
        try:
            values = self._writing or {_PROBE: (b"", _PROBE_TTL_SECONDS)}
            for ttl in {ttl for _, ttl in values.values()}:
                await self._store.put({name: value for name, (value, its) in values.items() if its == ttl}, ttl=ttl)
        except Exception as error:
            self._fail(error)
        except BaseException:  # this task is cancelled, and the rest is written at the end
            self._pending = self._writing | self._pending
            raise
        else:
            self.outage.ended()
        finally:
            self._writing = {}
