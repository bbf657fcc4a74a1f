"""Feedback on requests that the log cannot look up."""

from __future__ import annotations

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


async def test_while_the_log_is_away_another_tenants_request_looks_like_none(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_of(name).model_dump(mode="json") for name in ("alice", "bob")]
    async with gateway_of(registry_of(access={"keys": keys})) as gateway:
        body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "code"}]})
        headers = {"content-type": "application/json", "x-api-key": "alice"}
        asked = await gateway.post("/v1/chat/completions", body, headers=headers)
        request_id = asked.headers["x-request-id"]
        monkeypatch.setattr(gateway.log, "find", unreadable)
        answers = [await say(gateway, *asked) for asked in ((request_id, "bob"), (UNKNOWN_ID, "bob"))]
    assert [answer.status for answer in answers] == [503, 503]
    assert answers[0].body == answers[1].body


async def unreadable(_: str) -> None:
    raise StoreError("away")
