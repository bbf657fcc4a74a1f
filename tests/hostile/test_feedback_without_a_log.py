"""Ratings sent while the store is locked, hangs or is dead: none is lost, none is stored twice, and none is refused
where there is a spool."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from coe.errors import StoreError
from coe.records import open_log_and_feedback
from coe.records.feedback import Feedback
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.gateway.served import Served, serving
from tests.records.redis_server import RedisServer, running

pytestmark = pytest.mark.anyio

IN_FLIGHT = 24
UNKNOWN_ID = "req_" + "0" * 32


async def send_chat(served: Served) -> str:
    async with served.send_chat("good") as response:
        assert response.status == 200
        await response.read()
        return response.headers["x-request-id"]


async def rate(served: Served, request_id: str, score: float = 1.0) -> tuple[int, bool]:
    """Status, and whether the request was checked."""
    body = {"request_id": request_id, "score": score}
    async with served.client.post(f"{served.url}/v1/feedback", json=body) as response:
        return response.status, bool((await response.json()).get("checked"))


async def rate_all(served: Served, requests: list[str]) -> None:
    found = await asyncio.gather(*(rate(served, one) for one in requests))
    assert found == [(200, True)] * len(requests)


async def stored(served: Served, count: int) -> list[str]:
    """Wait until the log has `count` events, and return the ids of their requests."""
    log = open_log_and_feedback(served.declared["log"]["url"], base=served.folder / ".coe")[1]
    events: tuple[Feedback, ...] = ()
    try:
        async with asyncio.timeout(60):
            while len(events) < count:
                await asyncio.sleep(0.05)
                try:
                    events = (await log.read()).events
                except StoreError:
                    continue
    finally:
        await log.aclose()
    return [event.request_id for event in events]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the log's file, as another process that writes does."""
    connection = sqlite3.connect(folder / ".coe" / "routing-log.sqlite", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    finally:
        connection.close()


async def test_a_locked_sqlite_file_refuses_ratings_and_costs_no_record(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        requests = [await send_chat(served)]
        await rate_all(served, requests)
        with locked(tmp_path):
            requests += [await send_chat(served) for _ in range(IN_FLIGHT)]  # whose records wait
            answers = await asyncio.gather(*(rate(served, one) for one in requests[1:]))
            assert {status for status, _ in answers} == {503}
            assert await served.metric("coe_log_failing") == 1
        records = await served.records(len(requests))
        assert sorted(one.request_id for one in records) == sorted(requests)
        await rate_all(served, requests[1:])
        assert sorted(set(await stored(served, len(requests)))) == sorted(requests)


@pytest.fixture
def lasting_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps what it has acknowledged."""
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


async def test_a_redis_that_dies_and_comes_back_costs_no_rating(tmp_path: Path, lasting_redis: RedisServer) -> None:
    async with serving(tmp_path, log={"url": lasting_redis.url}) as served:
        requests = [await send_chat(served) for _ in range(IN_FLIGHT)]
        lasting_redis.kill()
        requests += [await send_chat(served) for _ in range(IN_FLIGHT)]
        await rate_all(served, requests)
        assert await rate(served, UNKNOWN_ID) == (202, False)
        lasting_redis.start()
        assert sorted(await stored(served, len(requests) + 1)) == sorted([UNKNOWN_ID, *requests])
        assert await served.metric("coe_feedback_rejected") == 0


async def test_a_redis_that_hangs_costs_no_rating(tmp_path: Path, lasting_redis: RedisServer) -> None:
    async with serving(tmp_path, log={"url": lasting_redis.url}) as served:
        requests = [await send_chat(served) for _ in range(IN_FLIGHT)]
        lasting_redis.signal(signal.SIGSTOP)
        try:
            await rate_all(served, requests)
        finally:
            lasting_redis.signal(signal.SIGCONT)
        assert sorted(await stored(served, len(requests))) == sorted(requests)


# ------------------------------------------------------------------------------------- another tenant's request, unseen


async def say(gateway: Gateway, request_id: str, key: str) -> Response:
    body = orjson.dumps({"request_id": request_id, "score": 0})
    return await gateway.post("/v1/feedback", body, headers={"content-type": "application/json", "x-api-key": key})


async def test_while_the_log_is_away_another_tenants_request_looks_like_none_and_is_rejected_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [key_of(name).model_dump(mode="json") for name in ("alice", "bob")]
    async with gateway_of(registry_of(access={"keys": keys}), spool=tmp_path / "spool.db") as gateway:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        headers = {"content-type": "application/json", "x-api-key": "alice"}
        asked = await gateway.post("/v1/chat/completions", body, headers=headers)
        request_id = asked.headers["x-request-id"]
        with monkeypatch.context() as away:
            away.setattr(gateway.log, "find", unreadable)
            gateway.log.fails = StoreError("away")
            own = await say(gateway, request_id, "alice")
            foreign, unknown = await say(gateway, request_id, "bob"), await say(gateway, UNKNOWN_ID, "bob")
        gateway.log.fails = None
        async with asyncio.timeout(60):
            while len(gateway.log.events) < 2:
                await asyncio.sleep(0.01)
    assert (own.status, own.json["checked"]) == (200, True)
    assert (foreign.status, foreign.json["checked"]) == (unknown.status, unknown.json["checked"]) == (202, False)
    assert {*foreign.json} == {*unknown.json}
    found = {(event.request_id, event.key) for event in gateway.log.events}
    assert found == {(request_id, "alice"), (UNKNOWN_ID, "bob")}, "learning leaves out what is about no request"


async def unreadable(_: str) -> None:
    raise StoreError("away")
