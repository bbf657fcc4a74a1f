"""`SharedCache`: values that may be lost. Lookups wait briefly, writes happen in the background, and no call fails.

The answer cache and the experts of conversations (affinity) each have one over a ValueStore.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

from coe.outage import Outage
from gateway.shared_store import ValueStore

MAX_PENDING_BYTES = 16 * 2**20
"""Bytes of values that wait to be written; further values are dropped."""
PENDING_OVERHEAD_BYTES = 256


class SharedCache:
    """A cache over `store`, which it closes, and an async context manager.

    `wait` bounds a lookup in seconds. After a failure, lookups find nothing until the store accepts a write. Values are
    dropped during the pause of `outage`; the next one is written then.
    """

    def __init__(self, store: ValueStore, outage: Outage, *, wait: float) -> None:
        self.outage = outage
        self._store = store
        self._wait = wait
        self._pending: dict[float, dict[str, bytes]] = {}
        """Values to write, by lifetime and name."""
        self.pending_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Writes what is pending, as far as the store works."""
        if self._writing is not None:
            await self._writing
        await self._store.aclose()

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values; None for what is missing or comes too late."""
        if not self.outage.active:
            lookup = asyncio.ensure_future(self._store.get(names))
            lookup.add_done_callback(self._note_failure)  # also of one that comes too late
            await asyncio.wait((lookup,), timeout=self._wait)
            if lookup.done() and lookup.exception() is None:
                return lookup.result()
        return [None] * len(names)

    def put(self, name: str, value: bytes, *, ttl: float) -> None:
        """Store the value soon."""
        size = len(value) + PENDING_OVERHEAD_BYTES
        if self.outage.pausing or self.pending_bytes + size > MAX_PENDING_BYTES:
            return
        self._pending.setdefault(ttl, {})[name] = value
        self.pending_bytes += size
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    def _note_failure(self, lookup: asyncio.Future[list[bytes | None]]) -> None:
        if not lookup.cancelled() and (error := lookup.exception()) is not None:
            self.outage.began(str(error))

    async def _write(self) -> None:
        """Writes what is pending, one batch after the other. Does not fail."""
        while self._pending:
            pending, self._pending, self.pending_bytes = self._pending, {}, 0
            try:
                for ttl, values in pending.items():
                    await self._store.put(values, ttl=ttl)
            except Exception as error:  # a value that is not stored must not fail anything
                self.outage.began(str(error))
            else:
                self.outage.ended()
