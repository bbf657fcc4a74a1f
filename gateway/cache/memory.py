"""`AnswerCache`, the store of cached answers, and the store in the memory of one process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

ENTRY_OVERHEAD_BYTES = 256
"""Bytes that an entry takes in addition to its value: its key and its place in the order of use."""


class AnswerCache(Protocol):
    """Stores values of at most `gateway.cache.answer.MAX_ANSWER_BYTES` and a short head by keys of 32 bytes.

    All values together have at most `max_bytes`, with ENTRY_OVERHEAD_BYTES each; the least recently used ones are
    deleted first. `get` returns None for an unknown or expired key, and also if the store is unavailable. `put` neither
    waits nor raises; a value that cannot be stored is dropped. `degraded` is True while the store is unavailable.
    """

    degraded: bool

    async def get(self, key: bytes) -> bytes | None: ...

    def put(self, key: bytes, value: bytes, *, ttl: float) -> None: ...


class MemoryAnswerCache:
    """An AnswerCache in this process."""

    degraded = False

    def __init__(self, max_bytes: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        """Expiry and value by key, the least recently used first."""
        self._size = 0

    async def get(self, key: bytes) -> bytes | None:
        if (found := self._entries.get(key)) is None:
            return None
        expiry, value = found
        if expiry <= self._clock():
            self._delete(key)
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes, *, ttl: float) -> None:
        if key in self._entries:
            self._delete(key)
        self._entries[key] = (self._clock() + ttl, value)
        self._size += len(value) + ENTRY_OVERHEAD_BYTES
        while self._size > self._max_bytes:
            self._delete(next(iter(self._entries)))

    def _delete(self, key: bytes) -> None:
        _, value = self._entries.pop(key)
        self._size -= len(value) + ENTRY_OVERHEAD_BYTES
