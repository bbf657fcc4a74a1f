"""Feedback on requests that the log cannot look up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from coe.errors import StoreError
from tests.access.samples import key_of
from tests.fakes import Gateway, Response, gateway_of, registry_of

pytestmark = pytest.mark.anyio

UNKNOWN_ID = "req_" + "0" * 32


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
    for answer in (own, foreign, unknown):
        assert (answer.status, answer.json["checked"]) == (202, False)
        assert {*answer.json} == {*own.json}
    found = {(event.request_id, event.key) for event in gateway.log.events}
    assert found == {(request_id, "alice"), (UNKNOWN_ID, "bob")}, "learning leaves out what is about no request"


async def unreadable(_: str) -> None:
    raise StoreError("away")
