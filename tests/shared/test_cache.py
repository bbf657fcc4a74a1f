"""SharedCache: values between gateways, and a store that is away, frozen, full or has foreign data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from redis import Redis

from coe import outage
from coe.outage import Outage
from gateway.shared_store import MAX_PENDING_BYTES, MemoryStore, RedisStore, SharedCache
from tests.records.redis_server import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio
LONG = 3600.0
PREFIX = "coe:{answers}:1:"
INDEX = f"{PREFIX}entries"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "RETRY_SECONDS", 0.02)


def cache_of(url: str, *, wait: float = 5.0) -> SharedCache:
    """A cache that waits long for a running Redis, however busy the machine is."""
    store = RedisStore(url, "answers", setting="cache.store", max_bytes=10_000)
    return SharedCache(store, Outage("cache", "; nothing is cached"), wait=wait)


async def found(cache: SharedCache, name: str, value: bytes) -> None:
    """Store values until the cache has this one."""
    async with asyncio.timeout(60):
        while await cache.get([name]) != [value]:
            cache.put("other", b"", ttl=LONG)
            await asyncio.sleep(0.002)


async def test_gateways_share_values_and_none_is_lost_when_one_stops(redis_url: str) -> None:
    async with cache_of(redis_url) as one:
        one.put("k", b"shared", ttl=LONG)
    async with cache_of(redis_url) as other:
        assert await other.get(["k"]) == [b"shared"]


def fill(client: Redis) -> None:
    client.config_set("maxmemory", "1")


def empty(client: Redis) -> None:
    client.config_set("maxmemory", "0")


def write_foreign_data(client: Redis) -> None:
    client.rename(INDEX, "kept")
    client.set(INDEX, "foreign")


def restore_data(client: Redis) -> None:
    client.rename("kept", INDEX)


@pytest.mark.parametrize(("break_it", "mend"), [(fill, empty), (write_foreign_data, restore_data)])
async def test_a_redis_that_fails_but_answers_a_ping_is_back_only_when_it_accepts_a_write(
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Redis], None],
    mend: Callable[[Redis], None],
) -> None:
    async with cache_of(redis_server.url) as cache:
        cache.put("k", b"before", ttl=LONG)
        await found(cache, "k", b"before")
        with Redis.from_url(redis_server.url) as client:
            break_it(client)
            failures = client.info("stats")["total_error_replies"] + 5
            cache.put("other", b"", ttl=LONG)
            await wait_until(lambda: cache.outage.active)
            async with asyncio.timeout(60):
                while client.info("stats")["total_error_replies"] < failures:
                    assert cache.outage.active
                    assert await cache.get(["k"]) == [None]
                    cache.put("other", b"", ttl=LONG)
                    await asyncio.sleep(0.001)
            mend(client)
            await found(cache, "k", b"before")
    logged = [record.getMessage() for record in caplog.records if record.name == "coe.outage"]
    assert len(logged) == 2, logged
    assert logged[0].endswith("; nothing is cached")
    assert logged[-1] == "cache: works again"


async def test_values_that_wait_to_be_written_are_bounded() -> None:
    cache = SharedCache(MemoryStore(), Outage("cache"), wait=5.0)
    for number in range(40):
        cache.put(str(number), bytes(2**20), ttl=LONG)
    assert 0 < cache.pending_bytes <= MAX_PENDING_BYTES
