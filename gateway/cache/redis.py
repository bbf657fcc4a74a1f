"""The answer cache of several gateways together, in Redis.

A lookup waits at most LOOKUP_TIMEOUT_SECONDS. One task stores answers and reconnects; while Redis is unavailable every
lookup is a miss at once, and answers are dropped. After a failure Redis is used again once storing and looking up a
test entry succeed: a server that is full, slow or has foreign data under these keys answers a ping.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from typing import Self

from coe.errors import CoEError
from coe.redis import RedisClient
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.cache.redis_entries import RedisEntries

_log = logging.getLogger("gateway")

LOOKUP_TIMEOUT_SECONDS = 0.05
"""Time limit of a request that waits for its answer."""
EXCHANGE_TIMEOUT_SECONDS = 1.0
"""Time limit of storing one answer, connecting included."""
RETRY_SECONDS = 1.0
"""Interval of attempts to reach a Redis that is down."""
MAX_PENDING_BYTES = 16 * 2**20
"""Bytes of answers that wait to be stored; further answers are dropped."""
MAX_CONNECTIONS = 16
_TEST_ENTRY = "test"
"""Name of the entry that is stored after a failure. Those of answers are 64 hexadecimal digits."""
_TEST_TTL_SECONDS = 30 * 86400
"""The longest `cache.ttl`, because storing an entry deletes those that were not used for longer than its lifetime."""


class CacheUnavailable(CoEError):
    """The Redis of the answer cache does not reply."""


def cache_client(url: str) -> RedisClient:
    """The client for `cache.store`. Its callers bound the time of every command. Raises ConfigError when `url` cannot
    be a Redis address."""
    return RedisClient(
        url,
        key="cache.store",
        error=CacheUnavailable,
        connections=MAX_CONNECTIONS,
        connect_timeout=None,
        timeout=None,
    )


class RedisAnswerCache:
    """An AnswerCache in Redis and an async context manager; call its methods only inside the context."""

    def __init__(self, url: str, max_bytes: int, *, task_failed: TaskFailed = ignore_failure) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self.degraded = False
        self._task_failed = task_failed
        self._redis = cache_client(url)
        self._entries = RedisEntries(self._redis, "answers", max_bytes)
        self._pending: deque[tuple[bytes, bytes, float]] = deque()
        self.pending_bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, "answer-cache", task_failed=self._task_failed)
        self._wake.set()  # connects now
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stores the pending entries, as far as Redis replies."""
        assert self._task
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if not self.degraded:
            await self._flush()
        await self._redis.aclose()

    async def get(self, key: bytes) -> bytes | None:
        if self.degraded:
            return None
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
                (found,) = await self._entries.get([key.hex()])
        except Exception as error:  # also a bug in the client library: it must not fail a request
            self._go_down(error)
            return None
        return found

    def put(self, key: bytes, value: bytes, *, ttl: float) -> None:
        if self.degraded or self.pending_bytes + len(value) > MAX_PENDING_BYTES:
            return
        self._pending.append((key, value, ttl))
        self.pending_bytes += len(value)
        self._wake.set()

    def _go_down(self, error: Exception) -> None:
        if not self.degraded:
            self.degraded = True
            problem = self._redis.describe(error)
            _log.warning("cache: %s; until Redis is back nothing is answered from the cache", problem)
        self._wake.set()

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._flush()
            if self.degraded:
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def _flush(self) -> None:
        """Checks Redis and writes the pending answers. Never raises: if Redis is down, drops the pending answers."""
        was_down = self.degraded
        try:
            if was_down:
                await self._use_test_entry()
            else:
                await self._within_time_limit(self._redis.run(self._redis.client.ping()))
            while self._pending:
                key, value, ttl = self._pending.popleft()
                self.pending_bytes -= len(value)
                await self._within_time_limit(self._entries.put(key.hex(), value, ttl=ttl))
            if was_down:  # a lookup that failed meanwhile waits for the next test entry
                self.degraded = False
                _log.warning("cache: %s is back", self._redis.place)
        except Exception as error:  # a lost answer must not fail anything
            self._pending.clear()
            self.pending_bytes = 0
            self._go_down(error)

    async def _use_test_entry(self) -> None:
        """Stores, reads and deletes an entry, each within its time limit. Raises the error of what fails."""
        await self._within_time_limit(self._entries.put(_TEST_ENTRY, b"", ttl=_TEST_TTL_SECONDS))
        async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
            await self._entries.get([_TEST_ENTRY])
        await self._within_time_limit(self._entries.delete(_TEST_ENTRY))

    async def _within_time_limit(self, command: Awaitable[object]) -> None:
        async with asyncio.timeout(EXCHANGE_TIMEOUT_SECONDS):
            await command
