"""Conformance of every ResponseStore, in SQLite and in a real Redis, and behaviour while it is unavailable."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coe.errors import ConfigError, ResponsesUnavailable
from coe.records import database
from coe.registry import StoredResponsesSpec
from gateway.request.stored_step import open_stored_step
from gateway.stored_responses import redis_store, store
from gateway.stored_responses.redis_store import RedisResponseStore
from gateway.stored_responses.store import ENTRY_OVERHEAD_BYTES, ResponseStore, SqliteResponseStore
from tests.access.samples import Clock
from tests.records.redis_server import RedisServer

pytestmark = pytest.mark.anyio
MAX_BYTES = 10_000
LIFETIME = 3600.0
QUARTER = b"x" * (MAX_BYTES // 4 - ENTRY_OVERHEAD_BYTES)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "redis"])
async def responses(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[ResponseStore]:
    opened: ResponseStore
    if request.param == "sqlite":
        opened = SqliteResponseStore(tmp_path / "r.sqlite", lifetime=LIFETIME, max_bytes=MAX_BYTES, clock=clock)
    else:
        opened = RedisResponseStore(request.getfixturevalue("redis_url"), lifetime=LIFETIME, max_bytes=MAX_BYTES)
    yield opened
    await opened.aclose()


async def test_values_are_returned_in_order_to_their_owner_only(responses: ResponseStore) -> None:
    await responses.put("a", {"1": b"one", "2": bytes(range(256))})
    await responses.put("b", {"1": b"other"})
    assert await responses.get("a", ["2", "none", "1"]) == [bytes(range(256)), None, b"one"]
    assert await responses.get("b", ["1", "2"]) == [b"other", None]
    assert await responses.get("", ["1"]) == [None]
    assert await responses.sizes("a", ["2", "none", "1"]) == [256, 0, 3]
    assert await responses.sizes("b", []) == []
    assert not responses.degraded


async def test_a_value_is_replaced_and_deleted(responses: ResponseStore) -> None:
    for number in range(20):
        await responses.put("a", {"1": b"%d" % number + QUARTER})
    await responses.put("a", {"2": b"two"})
    assert await responses.get("a", ["1", "2"]) == [b"19" + QUARTER, b"two"]
    assert await responses.delete("b", ["1"]) == 0
    assert await responses.delete("a", ["1", "none"]) == 1
    assert await responses.get("a", ["1", "2"]) == [None, b"two"]


async def test_the_least_recently_used_values_of_the_owner_make_room(responses: ResponseStore, clock: Clock) -> None:
    await responses.put("b", {"1": QUARTER})
    for name in "1234":
        await responses.put("a", {name: QUARTER})
        clock.ahead += LIFETIME / 10
        await asyncio.sleep(0.002)  # Redis orders by its own milliseconds
    assert await responses.get("a", ["1"]) == [QUARTER]  # used: now 2 is the oldest
    clock.ahead += 1
    await responses.put("a", {"5": QUARTER})
    assert await responses.get("a", list("12345")) == [QUARTER, None, QUARTER, QUARTER, QUARTER]
    assert await responses.get("b", ["1"]) == [QUARTER]


async def test_a_value_lives_its_time_after_the_last_use(tmp_path: Path, clock: Clock) -> None:
    file = SqliteResponseStore(tmp_path / "r.sqlite", lifetime=LIFETIME, max_bytes=MAX_BYTES, clock=clock)
    await file.put("a", {"used": b"1", "idle": b"2"})
    clock.ahead += LIFETIME * 0.75
    assert await file.get("a", ["used"]) == [b"1"]
    clock.ahead += LIFETIME * 0.5
    assert await file.get("a", ["used", "idle"]) == [b"1", None]
    await file.put("a", {"new": b"3"})
    assert await file._database.read(lambda one: one.execute("SELECT count(*) FROM entries").fetchone()) == (2,)
    await file.aclose()


async def test_a_value_lives_its_time_in_redis(redis_url: str) -> None:
    shared = RedisResponseStore(redis_url, lifetime=LIFETIME, max_bytes=MAX_BYTES)
    await shared.put("a", {"1": b"1"})
    (key,) = [one async for one in shared._redis.client.scan_iter("*:1:1")]
    assert LIFETIME - 5 <= await shared._redis.client.ttl(key) <= LIFETIME
    await shared._redis.client.expire(key, 5)
    await shared.get("a", ["1"])
    assert await shared._redis.client.ttl(key) > 5
    await shared.aclose()


async def test_two_processes_share_a_file_which_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "home" / "r.sqlite"
    one = SqliteResponseStore(path, lifetime=LIFETIME, max_bytes=MAX_BYTES)
    other = SqliteResponseStore(path, lifetime=LIFETIME, max_bytes=MAX_BYTES)
    await one.put("a", {"1": b"1"})
    assert await other.get("a", ["1"]) == [b"1"]
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await one.aclose()
    await other.aclose()


@pytest.mark.parametrize("was_there", [False, True])
async def test_a_folder_that_cannot_be_used_stops_no_start_and_the_file_follows(
    tmp_path: Path, was_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RETRY_AFTER", 0.0)
    home = tmp_path / "home"
    home.write_text("a file where the folder should be")
    spec = StoredResponsesSpec(store="sqlite")
    async with open_stored_step(spec, home, count=[].append) as step:
        assert step is not None
        with pytest.raises(ResponsesUnavailable, match=r"stored-responses\.sqlite.*check that the disk has room"):
            await step.store.put("a", {"1": b"1"})
        assert step.store.degraded
        home.unlink()
        if was_there:
            home.mkdir()
        await step.store.put("a", {"1": b"1"})
        assert not step.store.degraded


async def test_a_file_that_is_deleted_during_service_is_made_again_unreadable_for_others(tmp_path: Path) -> None:
    path = tmp_path / "home" / "r.sqlite"
    file = SqliteResponseStore(path, lifetime=LIFETIME, max_bytes=MAX_BYTES)
    await file.put("a", {"1": b"1"})
    shutil.rmtree(path.parent)
    await file.put("a", {"2": b"2"})
    assert await file.get("a", ["1", "2"]) == [None, b"2"]
    assert {stat.S_IMODE(one.stat().st_mode) for one in path.parent.iterdir()} == {0o600}
    await file.aclose()


async def test_a_file_that_cannot_be_written_is_unavailable_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_bytes(b"no database" * 100)
    file = SqliteResponseStore(tmp_path / "r.sqlite", lifetime=LIFETIME, max_bytes=MAX_BYTES)
    with pytest.raises(ResponsesUnavailable, match="try again, or send the conversation in `input`") as failed:
        await file.put("a", {"1": b"1"})
    assert failed.value.retry_after == store.RETRY_AFTER
    assert file.degraded
    await file.aclose()


async def test_a_file_that_another_process_writes_is_read_and_tried_again_after_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.0)
    path = tmp_path / "r.sqlite"
    file = SqliteResponseStore(path, lifetime=LIFETIME, max_bytes=MAX_BYTES, clock=clock)
    await file.put("a", {"1": b"1"})
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert await file.get("a", ["1"]) == [b"1"]
    assert not file.degraded
    clock.ahead += LIFETIME / 2
    assert await file.get("a", ["1"]) == [b"1"]  # it cannot be renewed
    assert file.degraded
    file._retry_at += 60.0
    with pytest.raises(ResponsesUnavailable, match="failed less than 1 s ago"):
        await file.put("a", {"1": b"2"})
    other.execute("ROLLBACK")
    other.close()
    file._retry_at = 0.0
    assert await file.get("a", ["1"]) == [b"1"]
    assert not file.degraded
    await file.aclose()


async def test_calls_that_wait_for_the_file_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_WAITING", 2)
    file = SqliteResponseStore(tmp_path / "r.sqlite", lifetime=LIFETIME, max_bytes=MAX_BYTES)
    free = threading.Event()
    busy = asyncio.create_task(file._database.read(lambda _: free.wait()))
    waiting = [asyncio.create_task(file.get("a", ["1"])) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResponsesUnavailable, match="2 calls wait for it"):
        await file.get("a", ["1"])
    free.set()
    assert await asyncio.gather(*waiting) == [[None], [None]]
    assert await file.get("a", ["1"]) == [None]
    await busy
    await file.aclose()


async def test_redis_that_is_away_is_asked_again_after_a_pause(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = RedisResponseStore(redis_server.url, lifetime=LIFETIME, max_bytes=MAX_BYTES)
    await shared.put("a", {"1": b"1"})
    monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", 0.05)
    redis_server.signal(signal.SIGSTOP)
    try:
        with pytest.raises(ResponsesUnavailable):
            await shared.get("a", ["1"])
        assert shared.degraded
        monkeypatch.setattr(redis_store, "TIMEOUT_SECONDS", 5.0)
        with pytest.raises(ResponsesUnavailable):  # at once: Redis is stopped, and a call would take 5 s
            await shared.get("a", ["1"])
    finally:
        redis_server.signal(signal.SIGCONT)
    shared._retry_at = 0.0
    assert await shared.get("a", ["1"]) == [b"1"]
    assert not shared.degraded
    await shared.aclose()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stored_responses\.store"):
        RedisResponseStore("redis://h:port/0", lifetime=LIFETIME, max_bytes=MAX_BYTES)
