"""The limiters under test: in one process, and sharing counts over a file and over a real redis-server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from gateway import shared_store
from gateway.access import limits
from gateway.access.issued_keys import KEYS_FILE
from gateway.access.limits import Limiter
from gateway.shared_store import RedisStore, SqliteStore
from tests.access.samples import Clock


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts, so that a running Redis replies in time on a busy machine."""
    monkeypatch.setattr(limits, "REFRESH_SECONDS", 10.0)
    monkeypatch.setattr(shared_store, "REDIS_TIMEOUT_SECONDS", 10.0)


@pytest.fixture
def clock() -> Clock:
    return Clock(stands=True)


def redis_limiter(url: str, **options: Callable[[], float]) -> Limiter:
    return Limiter(RedisStore(url, "use", setting="access.counters"), **options)


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def limiter(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Limiter]:
    """Of each kind in turn."""
    if request.param == "memory":
        opened = Limiter(clock=clock)
    elif request.param == "sqlite":
        file = request.getfixturevalue("tmp_path") / KEYS_FILE
        opened = Limiter(SqliteStore(file, clock=clock), clock=clock)
    else:
        opened = redis_limiter(request.getfixturevalue("redis_url"), clock=clock)
    async with opened:
        yield opened


@pytest.fixture
async def gateways(redis_url: str) -> AsyncIterator[Callable[[], Awaitable[Limiter]]]:
    """Opens limiters over the same Redis, one for each gateway."""
    async with AsyncExitStack() as stack:

        async def opened() -> Limiter:
            return await stack.enter_async_context(redis_limiter(redis_url))

        yield opened
