"""Conformance of every SharedStore, in memory, in SQLite and in a real Redis."""

from __future__ import annotations

import asyncio
import shutil
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis import Redis

from coe.errors import StoreError
from gateway import shared_store
from gateway.shared_store import ENTRY_OVERHEAD_BYTES, Change, MemoryStore, RedisStore, SharedStore, SqliteStore
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
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[SharedStore]:
    """Of each kind in turn, for MAX_BYTES."""
    opened: SharedStore
    if request.param == "memory":
        opened = MemoryStore(max_bytes=MAX_BYTES, clock=clock)
    elif request.param == "sqlite":
        opened = SqliteStore(tmp_path / "shared.sqlite", max_bytes=MAX_BYTES, clock=clock)
    else:
        opened = redis_store(request.getfixturevalue("redis_url"))
    yield opened
    await opened.aclose()


def redis_store(url: str) -> RedisStore:
    return RedisStore(url, "test", setting="cache.store", max_bytes=MAX_BYTES)


async def test_values_are_returned_in_order_to_their_group_only(store: SharedStore) -> None:
    assert await store.get(["1"], group="a") == [None]
    await store.put({"1": b"one", "2": bytes(range(256))}, ttl=LONG, group="a")
    await store.put({"1": b"other"}, ttl=LONG, group="b}")
    assert await store.get(["2", "none", "1"], group="a") == [bytes(range(256)), None, b"one"]
    assert await store.get(["1", "2"], group="b}") == [b"other", None]
    assert await store.get(["1"]) == [None]
    assert await store.sizes(["2", "none", "1"], group="a") == [256, 0, 3]
    assert (await store.get([]), await store.sizes([], group="b}"), await store.delete([])) == ([], [], 0)


async def test_a_value_is_replaced_and_deleted(store: SharedStore) -> None:
    for number in range(20):
        await store.put({"1": b"%d" % number + QUARTER}, ttl=LONG)
    await store.put({"2": b"two"}, ttl=LONG)
    assert await store.get(["1", "2"]) == [b"19" + QUARTER, b"two"]
    assert await store.delete(["1"], group="b") == 0
    assert await store.delete(["1", "none"]) == 1
    assert await store.get(["1", "2"]) == [None, b"two"]


async def test_a_value_expires_unless_it_is_renewed(store: SharedStore, clock: Clock) -> None:
    await store.put({"short": b"1", "renewed": b"2"}, ttl=0.5)
    await store.put({"long": b"3"}, ttl=LONG)
    assert await store.get(["renewed"], renew=LONG) == [b"2"]
    clock.ahead = 1.0
    async with asyncio.timeout(60):
        while await store.sizes(["short"]) != [0]:
            await asyncio.sleep(0.05)
    assert await store.get(["short", "renewed", "long"]) == [None, b"2", b"3"]


async def test_the_least_recently_used_values_of_the_group_make_room(store: SharedStore, clock: Clock) -> None:
    await store.put({"1": QUARTER}, ttl=LONG, group="b")
    for name in "1234":
        await store.put({name: QUARTER}, ttl=LONG, group="a")
        clock.ahead += LONG / 10
        await asyncio.sleep(0.002)  # Redis orders by milliseconds
    assert await store.get(["1"], group="a", renew=LONG) == [QUARTER]
    clock.ahead += 1
    await asyncio.sleep(0.002)
    await store.put({"5": QUARTER}, ttl=LONG, group="a")
    assert await store.get(list("12345"), group="a") == [QUARTER, None, QUARTER, QUARTER, QUARTER]
    assert await store.get(["1"], group="b") == [QUARTER]
    await store.put({"6": b"x" * (MAX_BYTES + 1)}, ttl=LONG, group="a")
    assert await store.get(["6"], group="a") == [None]


async def test_a_replacement_needs_the_value_that_was_read_and_may_be_repeated(store: SharedStore) -> None:
    assert await store.replace("list", b"", b"one")
    assert await store.replace("list", b"", b"one")
    assert not await store.replace("list", b"", b"two")
    assert await store.get(["list"]) == [b"one"]
    done = await asyncio.gather(*(store.replace("list", b"one", b"%d" % number) for number in range(5)))
    assert sum(done) == 1
    assert await store.get(["list"]) == [b"%d" % done.index(True)]


async def test_a_counter_adds_up_and_is_never_negative(store: SharedStore) -> None:
    assert await store.add({}) == {}
    assert await store.add({"a": Change(0, LONG)}) == {"a": 0}
    assert await store.add({"a": Change(2.5, LONG), "b": Change(1, LONG)}) == {"a": 2.5, "b": 1}
    await asyncio.gather(*(store.add({"b": Change(1, LONG)}) for _ in range(20)))
    assert await store.add({"a": Change(-0.5, LONG), "b": Change(0, LONG)}) == {"a": 2, "b": 21}
    assert await store.add({"a": Change(-5, LONG)}) == {"a": 0}
    assert await store.add({"a": Change(1, LONG)}) == {"a": 1}


async def test_a_counter_leaks_and_is_forgotten(store: SharedStore, clock: Clock) -> None:
    await store.add({"leaking": Change(1, LONG, 2), "short": Change(7, 1)})
    clock.ahead = 2.0
    async with asyncio.timeout(60):
        while any((await store.add({"leaking": Change(0, LONG, 2), "short": Change(0, 1)})).values()):
            await asyncio.sleep(0.05)


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
