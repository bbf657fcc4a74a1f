"""Ratings sent while the store is locked, hangs or is dead: none is lost, none is stored twice, and none is refused
where there is a spool."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from coe.errors import StoreError
from coe.records import open_log_and_feedback
from coe.records.feedback import Feedback
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of
from tests.gateway.served import Served

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
