"""The answer cache of several gateways together, in Redis. Needs Redis 6.2 or newer, or Valkey.

A lookup waits at most LOOKUP_TIMEOUT_SECONDS. One task stores answers and reconnects; while Redis is unavailable every
lookup is a miss at once, and answers are dropped. Scripts keep the total size exact and delete the least recently used
answers.
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
from gateway.cache.memory import ENTRY_OVERHEAD_BYTES

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
PREFIX = "coe:{answers}:1:"
"""Begins all keys. The braces put them into one slot of a Redis cluster, the number is the version of the format."""
_INDEX, _SIZES = PREFIX + "used", PREFIX + "sizes"
"""Keys: time of last use by entry (sorted set), and size by entry with their `total` (hash)."""

# KEYS: the entry, the index. ARGV: the entry's name in the index.
_GET = """
local value = redis.call('GET', KEYS[1])
if value then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], 'XX', time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
end
return value
"""
# KEYS: the entry, the index, the sizes. ARGV: the entry's name, its value, its size, milliseconds to live, the largest
# total size, the prefix of entries. Entries that were last used longer ago than they live are gone: at most 100 of them
# leave the index at a time.
_PUT = """
local time = redis.call('TIME')
local now, ttl = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[4])
local function delete(name)
  redis.call('DEL', ARGV[6] .. name)
  redis.call('ZREM', KEYS[2], name)
  local size = redis.call('HGET', KEYS[3], name)
  if size then
    redis.call('HDEL', KEYS[3], name)
    redis.call('HINCRBY', KEYS[3], 'total', -tonumber(size))
  end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ttl, 'LIMIT', 0, 100)) do delete(name) end
delete(ARGV[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ttl)
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
local total = redis.call('HINCRBY', KEYS[3], 'total', ARGV[3])
while total > tonumber(ARGV[5]) do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then break end
  delete(oldest)
  total = tonumber(redis.call('HGET', KEYS[3], 'total'))
end
for _, key in ipairs({KEYS[2], KEYS[3]}) do
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
end
"""


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
    """An AnswerCache while it is entered."""

    def __init__(self, url: str, max_bytes: int, *, task_failed: TaskFailed = ignore_failure) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self.degraded = False
        self._max_bytes = max_bytes
        self._task_failed = task_failed
        self._redis = cache_client(url)
        self._get = self._redis.client.register_script(_GET)
        self._put = self._redis.client.register_script(_PUT)
        self._pending: deque[tuple[bytes, bytes, float]] = deque()
        self.pending_bytes = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, "answer-cache", task_failed=self._task_failed)
        self._wake.set()  # connects now
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stores what waits, as far as Redis replies."""
        assert self._task
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if not self.degraded:
            await self._exchange()
        await self._redis.aclose()

    async def get(self, key: bytes) -> bytes | None:
        if self.degraded:
            return None
        name = key.hex()
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
                found: bytes | None = await self._redis.run(self._get(keys=[PREFIX + name, _INDEX], args=[name]))
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
            problem = error if isinstance(error, CacheUnavailable) else f"{self._redis.place}: {error!r}"
            _log.warning("cache: %s; until Redis is back nothing is answered from the cache", problem)
        self._wake.set()

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._exchange()
            if self.degraded:
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def _exchange(self) -> None:
        """Stores what waits, or only asks whether Redis is there. Does not fail; drops what waits if Redis is down."""
        try:
            await self._within_time_limit(self._redis.client.ping())
            while self._pending:
                key, value, ttl = self._pending.popleft()
                self.pending_bytes -= len(value)
                await self._within_time_limit(self._store(key.hex(), value, ttl))
            if self.degraded:
                _log.warning("cache: %s is back", self._redis.place)
            self.degraded = False
        except Exception as error:  # a lost answer must not fail anything
            self._pending.clear()
            self.pending_bytes = 0
            self._go_down(error)

    async def _within_time_limit(self, command: Awaitable[object]) -> None:
        async with asyncio.timeout(EXCHANGE_TIMEOUT_SECONDS):
            await self._redis.run(command)

    def _store(self, name: str, value: bytes, ttl: float) -> Awaitable[object]:
        size = len(value) + ENTRY_OVERHEAD_BYTES
        arguments: list[bytes | str | float] = [name, value, size, max(1, round(ttl * 1000)), self._max_bytes, PREFIX]
        return self._put(keys=[PREFIX + name, _INDEX, _SIZES], args=arguments)
