"""A ResponseStore in Redis, shared by several gateways. After a failure, all calls fail at once for RETRY_SECONDS."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from coe.errors import CoEError
from coe.redis import RedisClient
from gateway.cache.redis_entries import RedisEntries
from gateway.stored_responses.store import unavailable

T = TypeVar("T")
TIMEOUT_SECONDS = 0.5
"""Time limit of one call."""
RETRY_SECONDS = 1.0
MAX_CONNECTIONS = 16


class RedisFailed(CoEError):
    """Redis did not reply. Becomes ResponsesUnavailable."""


class RedisResponseStore:
    """A ResponseStore. Raises ConfigError when `url` cannot be a Redis address."""

    def __init__(self, url: str, *, lifetime: float, max_bytes: int) -> None:
        self.degraded = False
        self._lifetime = lifetime
        self._retry_at = 0.0
        self._redis = RedisClient(
            url,
            key="stored_responses.store",
            error=RedisFailed,
            connections=MAX_CONNECTIONS,
            connect_timeout=None,
            timeout=None,
        )
        self._entries = RedisEntries(self._redis, "responses:", max_bytes)

    async def get(self, owner: str, names: Sequence[str]) -> list[bytes | None]:
        if not names:
            return []
        return await self._within_limit(lambda: self._entries.get(names, group=_group(owner), ttl=self._lifetime))

    async def sizes(self, owner: str, names: Sequence[str]) -> list[int]:
        if not names:
            return []
        return await self._within_limit(lambda: self._entries.sizes(names, group=_group(owner)))

    async def put(self, owner: str, entries: Mapping[str, bytes]) -> None:
        async def work() -> None:
            for name, value in entries.items():
                await self._entries.put(name, value, ttl=self._lifetime, group=_group(owner))

        await self._within_limit(work)

    async def delete(self, owner: str, names: Sequence[str]) -> int:
        async def work() -> int:
            return sum([await self._entries.delete(name, group=_group(owner)) for name in names])

        return await self._within_limit(work)

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _within_limit(self, work: Callable[[], Awaitable[T]]) -> T:
        if self.degraded and time.monotonic() < self._retry_at:
            raise unavailable(f"{self._redis.place} does not reply")
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                result = await work()
        except (RedisFailed, TimeoutError) as error:
            self.degraded, self._retry_at = True, time.monotonic() + RETRY_SECONDS
            raise unavailable(str(error) or f"{self._redis.place} does not reply") from None
        self.degraded = False
        return result


def _group(owner: str) -> str:
    """Return the owner's digest for Redis keys, in which braces of the name would act as a hash tag."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]
