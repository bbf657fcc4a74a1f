"""The contract of AnswerCache, in memory and in a real Redis; also sharing through Redis, and an unavailable Redis."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable

import pytest
from redis import Redis

from coe.errors import ConfigError
from gateway.cache import redis as redis_cache
from gateway.cache.memory import ENTRY_OVERHEAD_BYTES, AnswerCache, MemoryAnswerCache
from gateway.cache.redis import MAX_PENDING_BYTES, RedisAnswerCache
from tests.access.samples import Clock
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio

MAX_BYTES = 10_000
LONG = 3600.0
PREFIX = "coe:{answers}:1:"
INDEX = f"{PREFIX}used"


def key_of(number: int) -> bytes:
    return number.to_bytes(32)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long timeouts, so that a running Redis replies in time on a busy machine."""
    monkeypatch.setattr(redis_cache, "LOOKUP_TIMEOUT_SECONDS", 5.0)
    monkeypatch.setattr(redis_cache, "EXCHANGE_TIMEOUT_SECONDS", 5.0)
    monkeypatch.setattr(redis_cache, "RETRY_SECONDS", 0.02)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[AnswerCache]:
    """Of each kind in turn, for MAX_BYTES."""
    if request.param == "memory":
        yield MemoryAnswerCache(MAX_BYTES, clock=clock)
        return
    async with RedisAnswerCache(request.getfixturevalue("redis_url"), MAX_BYTES) as shared:
        yield shared


async def stored(cache: AnswerCache, number: int, value: bytes) -> None:
    """Store the value, and wait until it can be read: Redis stores in the background."""
    cache.put(key_of(number), value, ttl=LONG)
    await found(cache, number, value)


async def stored_for_a_moment(cache: AnswerCache, number: int, value: bytes, *, ttl: float) -> None:
    """Store the value until it was read once: on a busy machine it may expire before that."""
    async with asyncio.timeout(60):
        while await cache.get(key_of(number)) != value:
            cache.put(key_of(number), value, ttl=ttl)
            await asyncio.sleep(0.01)


async def found(cache: AnswerCache, number: int, value: bytes | None) -> None:
    """Waits until the cache has this value."""
    async with asyncio.timeout(60):
        while await cache.get(key_of(number)) != value:
            await asyncio.sleep(0.002)


async def test_a_value_is_returned_byte_for_byte_by_its_own_key_only(cache: AnswerCache) -> None:
    value = bytes(range(256)) * 4
    assert await cache.get(key_of(1)) is None
    await stored(cache, 1, value)
    assert await cache.get(key_of(1)) == value
    assert await cache.get(key_of(2)) is None
    assert not cache.degraded


async def test_the_latest_value_of_a_key_counts_and_takes_its_room_once(cache: AnswerCache) -> None:
    for number in range(20):
        await stored(cache, 1, b"%d" % number * (MAX_BYTES // 4))
    await stored(cache, 2, b"b" * (MAX_BYTES // 4))
    assert await cache.get(key_of(1)) is not None


async def test_a_value_expires(cache: AnswerCache, clock: Clock) -> None:
    await stored_for_a_moment(cache, 1, b"short", ttl=1.0)
    await stored(cache, 2, b"long")
    clock.ahead = 2.0
    await found(cache, 1, None)
    assert await cache.get(key_of(2)) == b"long"


async def test_the_least_recently_used_values_give_way_and_the_total_is_bounded(cache: AnswerCache) -> None:
    size = MAX_BYTES // 4 - ENTRY_OVERHEAD_BYTES  # four fit
    for number in range(4):
        await stored(cache, number, b"%d" % number * size)
        await asyncio.sleep(0.002)  # Redis orders uses by milliseconds
    assert await cache.get(key_of(0)) is not None
    await asyncio.sleep(0.002)
    await stored(cache, 4, b"4" * size)
    kept = [number for number in range(5) if await cache.get(key_of(number)) is not None]
    assert kept == [0, 2, 3, 4]
    for number in range(100, 200):
        cache.put(key_of(number), b"x" * 50, ttl=LONG)
    await stored(cache, 200, b"last")
    kept = [number for number in range(201) if await cache.get(key_of(number)) is not None]
    assert 200 in kept
    assert len(kept) <= MAX_BYTES // (50 + ENTRY_OVERHEAD_BYTES) + 1


async def test_a_value_larger_than_the_cache_is_dropped(cache: AnswerCache) -> None:
    cache.put(key_of(1), b"x" * (MAX_BYTES + 1), ttl=LONG)
    await stored(cache, 2, b"small")
    assert await cache.get(key_of(1)) is None


async def test_gateways_share_answers_and_none_is_lost_when_one_stops(redis_url: str) -> None:
    async with RedisAnswerCache(redis_url, MAX_BYTES) as one:
        one.put(key_of(1), b"shared", ttl=LONG)
    async with RedisAnswerCache(redis_url, MAX_BYTES) as other:
        assert await other.get(key_of(1)) == b"shared"


async def test_redis_keeps_the_size_of_what_it_has_and_nothing_for_ever(redis_url: str) -> None:
    async with RedisAnswerCache(redis_url, MAX_BYTES) as cache:
        await stored_for_a_moment(cache, 1, b"a" * 100, ttl=0.5)
        await found(cache, 1, None)
        await stored(cache, 2, b"b" * 50)
        with Redis.from_url(redis_url) as client:
            assert client.hget("coe:{answers}:1:sizes", "total") == b"%d" % (50 + ENTRY_OVERHEAD_BYTES)
            assert client.zrange("coe:{answers}:1:used", 0, -1) == [key_of(2).hex().encode()]
            assert all(0 < client.ttl(key) <= LONG for key in client.scan_iter())  # the index and the sizes too
            assert client.dbsize() == 3


async def test_a_redis_that_is_away_is_a_miss_and_is_found_again(redis_server: RedisServer) -> None:
    async with RedisAnswerCache(redis_server.url, MAX_BYTES) as cache:
        await stored(cache, 1, b"before")
        redis_server.kill()
        assert await cache.get(key_of(1)) is None
        assert cache.degraded
        cache.put(key_of(1), b"lost", ttl=LONG)
        redis_server.start()
        async with asyncio.timeout(60):
            while cache.degraded:
                await asyncio.sleep(0.01)
        assert await cache.get(key_of(1)) is None
        assert await cache.get(key_of(1)) is None
        await stored(cache, 1, b"after")


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
async def test_a_redis_that_fails_but_answers_a_ping_is_back_only_when_it_works(
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Redis], None],
    mend: Callable[[Redis], None],
) -> None:
    async with RedisAnswerCache(redis_server.url, MAX_BYTES) as cache:
        await stored(cache, 1, b"before")
        with Redis.from_url(redis_server.url) as client:
            break_it(client)
            failures = client.info("stats")["total_error_replies"] + 5
            assert await cache.get(key_of(1)) is None
            async with asyncio.timeout(60):
                while client.info("stats")["total_error_replies"] < failures:
                    assert cache.degraded
                    assert await cache.get(key_of(1)) is None
                    await asyncio.sleep(0.001)
            mend(client)
            await found(cache, 1, b"before")
            assert not client.exists(f"{PREFIX}test")
    logged = [record.getMessage() for record in caplog.records if record.name == "gateway"]
    assert len(logged) == 2, logged
    assert logged[-1].endswith(" is back")


async def test_a_lookup_that_fails_during_a_ping_is_not_undone_by_its_reply(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that is slower than lookups allow, and not than pings."""
    pinged, go = asyncio.Event(), asyncio.Event()

    async def ping() -> bool:
        pinged.set()
        await go.wait()
        return True

    async def hang(keys: object) -> list[bytes | None]:
        await asyncio.Event().wait()
        return []

    async with RedisAnswerCache(redis_server.url, MAX_BYTES) as cache:
        await stored(cache, 1, b"before")
        monkeypatch.setattr(redis_cache, "LOOKUP_TIMEOUT_SECONDS", 0.02)
        monkeypatch.setattr(cache._entries, "get", hang)
        monkeypatch.setattr(cache._redis.client, "ping", ping)
        cache.put(key_of(2), b"more", ttl=LONG)
        await pinged.wait()
        assert await cache.get(key_of(1)) is None
        go.set()
        for _ in range(10):  # while the answer is stored, and Redis is tried again
            await asyncio.sleep(0.02)
            assert cache.degraded
    (logged,) = [record.getMessage() for record in caplog.records if record.name == "gateway"]
    assert f"cache: redis at 127.0.0.1:{redis_server.port}: no reply in time; check that it runs" in logged


async def test_a_frozen_redis_delays_one_lookup_by_the_limit_and_no_further_one(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_cache, "LOOKUP_TIMEOUT_SECONDS", 0.05)
    async with RedisAnswerCache(redis_server.url, MAX_BYTES) as cache:
        async with asyncio.timeout(60):
            while cache.degraded or await cache.get(key_of(1)) is None:
                cache.put(key_of(1), b"before", ttl=LONG)
                await asyncio.sleep(0.01)
        redis_server.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):  # far below the time that Redis stays frozen
                assert await asyncio.gather(*(cache.get(key_of(1)) for _ in range(50))) == [None] * 50
                assert cache.degraded
                assert [await cache.get(key_of(1)) for _ in range(1000)] == [None] * 1000
        finally:
            redis_server.signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            while await cache.get(key_of(1)) != b"before":
                await asyncio.sleep(0.01)


async def test_a_redis_that_was_never_there_delays_neither_start_nor_end() -> None:
    async with RedisAnswerCache("redis://127.0.0.1:1/0", MAX_BYTES) as cache:
        assert await cache.get(key_of(1)) is None
        cache.put(key_of(1), b"x", ttl=LONG)
        assert cache.degraded


async def test_answers_that_wait_to_be_stored_are_bounded(redis_server: RedisServer) -> None:
    async with RedisAnswerCache(redis_server.url, 2**40) as cache:
        redis_server.signal(signal.SIGSTOP)
        try:
            for number in range(40):
                cache.put(key_of(number), bytes(2**20), ttl=LONG)
            assert cache.pending_bytes <= MAX_PENDING_BYTES
        finally:
            redis_server.signal(signal.SIGCONT)


def test_a_wrong_address_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cache\.store: not a Redis address"):
        RedisAnswerCache("redis://h:port/0", MAX_BYTES)
