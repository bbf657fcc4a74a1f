"""The limiters under test: in the process, in the process and a file, and several over one real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from coe.runtime import key_store
from gateway.access import redis
from gateway.access.durable import KEY_USAGE_FILE, DurableLimiter
from gateway.access.limits import Limiter, MemoryLimiter
from gateway.access.redis import RedisLimiter
from tests.access.samples import Clock


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts, so that a running Redis replies in time on a busy machine."""
    monkeypatch.setattr(redis, "REFILL_TIMEOUT_SECONDS", 10.0)
    monkeypatch.setattr(key_store, "TIMEOUT_SECONDS", 10.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "durable", "redis"])
async def limiter(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Limiter]:
    """Of each kind in turn."""
    if request.param == "memory":
        yield MemoryLimiter(clock=clock)
        return
    if request.param == "durable":
        async with DurableLimiter(request.getfixturevalue("tmp_path") / KEY_USAGE_FILE, clock=clock) as durable:
            yield durable
        return
    async with RedisLimiter(request.getfixturevalue("redis_url"), clock=clock) as limiter:
        yield limiter


@pytest.fixture
async def gateways(redis_url: str) -> AsyncIterator[Callable[[], Awaitable[RedisLimiter]]]:
    """Opens limiters over the same Redis, one for each gateway."""
    async with AsyncExitStack() as stack:

        async def opened() -> RedisLimiter:
            return await stack.enter_async_context(RedisLimiter(redis_url))

        yield opened
