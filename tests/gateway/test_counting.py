"""The token count of Messages requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.dialects.messages import MESSAGES
from tests.access.test_access import bearer, keyed
from tests.fakes import Response, gateway_of

pytestmark = pytest.mark.anyio

PATH = "/v1/messages/count_tokens"
TOOL = {"name": "get_weather", "description": "w" * 100, "input_schema": {"type": "object"}}


def body(*blocks: dict[str, Any], **fields: Any) -> bytes:
    content = list(blocks) or "a" * 40
    return orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": content}], **fields})


async def test_tokens_are_counted_without_a_call_to_an_expert_and_without_a_record() -> None:
    async with gateway_of() as gateway:
        counted = await gateway.post(PATH, body(), headers={"content-type": "application/json", "x-coe-explain": "1"})
        pinned = await gateway.post(PATH, body(model="painter"))
        assert not [expert for expert in gateway.experts.values() if expert.calls]
        assert not gateway.records
    assert (counted.status, counted.json) == (200, {"input_tokens": 10})
    assert pinned.json == counted.json


async def test_a_bug_below_the_messages_path_has_anthropics_error_body(monkeypatch: pytest.MonkeyPatch) -> None:
    response = Response()
    monkeypatch.setattr("gateway.endpoints.route.MESSAGES", replace(MESSAGES, parse=lambda *_: 1 / 0))
    async with gateway_of() as gateway:
        with pytest.raises(ZeroDivisionError):
            await gateway.post(PATH, body(), into=response)
    assert (response.status, response.json["error"]["type"]) == (500, "api_error")


async def test_counting_wants_the_scope_of_chats_and_is_a_request_of_its_key() -> None:
    async with gateway_of(keyed(scopes=("route",))) as gateway:
        assert (await gateway.post(PATH, body(), headers=bearer())).json["error"]["type"] == "permission_error"
        unknown = await gateway.post(PATH, body(), headers=bearer("mallory"))
    assert (unknown.status, unknown.json["error"]["type"]) == (401, "authentication_error")
    async with gateway_of(keyed(scopes=("chat",), limits={"requests_per_minute": 1})) as gateway:
        assert (await gateway.post(PATH, body(), headers=bearer())).headers["x-ratelimit-remaining-requests"] == "0"
        refused = await gateway.post(PATH, body(), headers=bearer())
    assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
