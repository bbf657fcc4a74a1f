"""Conformance of every store, in memory, in SQLite and in a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from coe.errors import StoreError
from gateway import shared_store
from gateway.shared_store import (
    ENTRY_OVERHEAD_BYTES,
    Change,
    MemoryStore,
    RedisStore,
    SharedStore,
    SqliteStore,
    ValueStore,
)
from tests.access.samples import Clock
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio
MAX_BYTES = 10_000
LONG = 3600.0
QUARTER = b"x" * (MAX_BYTES // 4 - ENTRY_OVERHEAD_BYTES)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def store(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Any]:
    """Of each kind in turn, for MAX_BYTES."""
    opened: ValueStore
    if request.param == "memory":
        opened = MemoryStore(max_bytes=MAX_BYTES, clock=clock)
    elif request.param == "sqlite":
        file = request.getfixturevalue("tmp_path") / "shared.sqlite"
        opened = SqliteStore(file, max_bytes=MAX_BYTES, clock=clock)
    else:
        opened = redis_store(request.getfixturevalue("redis_url"))
    yield opened
    await opened.aclose()


shared = pytest.mark.parametrize("store", ["sqlite", "redis"], indirect=True)


def redis_store(url: str) -> RedisStore:
    return RedisStore(url, "test", setting="cache.store", max_bytes=MAX_BYTES)


@shared
async def test_values_are_returned_in_order_to_their_group_only(store: SharedStore) -> None:
    assert await store.get(["1"], group="a") == [None]
    await store.put({"1": b"one", "2": bytes(range(256))}, ttl=LONG, group="a")
    await store.put({"1": b"other"}, ttl=LONG, group="b}")
    assert await store.get(["2", "none", "1"], group="a") == [bytes(range(256)), None, b"one"]
    assert await store.get(["1", "2"], group="b}") == [b"other", None]
    assert await store.get(["1"]) == [None]
    assert await store.sizes(["2", "none", "1"], group="a") == [256, 0, 3]
    assert (await store.get([]), await store.sizes([], group="b}")) == ([], [])


async def test_a_value_is_replaced(store: ValueStore) -> None:
    for number in range(20):
        await store.put({"1": b"%d" % number + QUARTER}, ttl=LONG)
        await asyncio.sleep(0.004)  # Redis tells a replaced value from its successor by milliseconds
    await store.put({"2": b"two"}, ttl=LONG)
    assert await store.get(["1", "2"]) == [b"19" + QUARTER, b"two"]


@shared
async def test_a_value_is_deleted(store: SharedStore) -> None:
    await store.put({"1": b"one", "2": b"two"}, ttl=LONG)
    await store.delete(["2"], group="b")
    await store.delete(["1", "none"])
    assert await store.get(["1", "2"]) == [None, b"two"]


async def test_a_value_expires(store: ValueStore, clock: Clock) -> None:
    await store.put({"short": b"1"}, ttl=0.5)
    await store.put({"long": b"3"}, ttl=LONG)
    assert await store.get(["short", "long"]) == [b"1", b"3"]
    clock.ahead = 1.0
    async with asyncio.timeout(60):
        while await store.get(["short", "long"]) != [None, b"3"]:
            await asyncio.sleep(0.05)


async def test_the_oldest_values_make_room(store: ValueStore, clock: Clock) -> None:
    for name in "12345":
        await store.put({name: QUARTER}, ttl=LONG)
        clock.ahead += 1
    assert await store.get(list("12345")) == [None, QUARTER, QUARTER, QUARTER, QUARTER]
    await store.put({"6": b"x" * (MAX_BYTES + 1)}, ttl=LONG)
    assert await store.get(["6"]) == [None]
    await store.put({"7": QUARTER}, ttl=LONG)
    assert await store.get(["7"]) == [QUARTER]


@shared
async def test_no_group_takes_the_room_of_another(store: SharedStore) -> None:
    await store.put({"1": QUARTER}, ttl=LONG, group="a")
    for name in "12345":
        await store.put({name: QUARTER}, ttl=LONG, group="b")
    assert await store.get(["1"], group="a") == [QUARTER]


async def test_expired_values_take_no_room(redis_url: str) -> None:
    store = redis_store(redis_url)
    for number in range(20):
        await store.put({f"{number}": QUARTER}, ttl=0.01)
        await asyncio.sleep(0.02)
    with Redis.from_url(redis_url) as client:
        assert client.llen("coe:{test}:1:entries") <= 1
        assert int(client.get("coe:{test}:1:bytes") or 0) <= MAX_BYTES // 4
    await store.aclose()


@shared
async def test_a_replacement_needs_the_value_that_was_read_and_may_be_repeated(store: SharedStore) -> None:
    assert await store.replace("list", b"", b"one")
    assert await store.replace("list", b"", b"one")
    assert not await store.replace("list", b"", b"two")
    assert await store.get(["list"]) == [b"one"]
    done = await asyncio.gather(*(store.replace("list", b"one", b"%d" % number) for number in range(5)))
    assert sum(done) == 1
    assert await store.get(["list"]) == [b"%d" % done.index(True)]


@shared
async def test_a_counter_adds_up_and_is_forgotten(store: SharedStore, clock: Clock) -> None:
    assert await store.add({}) == {}
    assert await store.add({"a": Change(0, LONG)}) == {"a": 0}
    assert await store.add({"a": Change(2.5, LONG), "b": Change(1, LONG), "short": Change(7, 1)}) == {
        "a": 2.5,
        "b": 1,
        "short": 7,
    }
    await asyncio.gather(*(store.add({"b": Change(1, LONG)}) for _ in range(20)))
    assert await store.add({"a": Change(-0.5, LONG), "b": Change(0, LONG)}) == {"a": 2, "b": 21}
    clock.ahead = 2.0
    async with asyncio.timeout(60):
        while (await store.add({"a": Change(0, LONG), "short": Change(0, 1)})) != {"a": 2, "short": 0}:
            await asyncio.sleep(1.2)  # asking Redis begins the time anew


# ------------------------------------------------------------------------------------------------- SQLite


async def test_two_processes_share_a_file_which_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "home" / "shared.sqlite"
    one, other = SqliteStore(path), SqliteStore(path)
    assert await other.get(["1"]) == [None]
    assert await other.add({"a": Change(0, 1)}) == {"a": 0}
    assert not path.parent.exists()
    await one.put({"1": b"1"}, ttl=LONG)
    assert await other.get(["1"]) == [b"1"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    shutil.rmtree(path.parent)
    await one.put({"2": b"2"}, ttl=LONG)
    assert await other.get(["1", "2"]) == [None, b"2"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    for store in (one, other):
        await store.aclose()


# -------------------------------------------------------------------------------------------------- Redis


async def test_redis_that_fails_is_an_error_with_its_place_and_is_used_again_after_it(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_store, "REDIS_TIMEOUT_SECONDS", 5.0)
    store = redis_store(redis_server.url)
    await store.put({"1": b"1"}, ttl=LONG)
    with Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreError, match="it is full: raise its maxmemory"):
            await store.put({"1": b"1"}, ttl=LONG)
        client.config_set("maxmemory", "0")
    redis_server.kill()
    with pytest.raises(StoreError, match=f"redis at 127.0.0.1:{redis_server.port}"):
        await store.add({})
    redis_server.start()
    await store.add({"1": Change(1, LONG)})
    await store.aclose()
