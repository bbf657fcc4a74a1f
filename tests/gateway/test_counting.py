"""The token count of Messages requests."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import orjson
import pytest

from gateway.access.estimate import TOKENS_PER_FILE, input_tokens
from gateway.dialects.messages import MESSAGES
from tests.access.test_access import bearer, keyed
from tests.fakes import Response, gateway_of

pytestmark = pytest.mark.anyio

PATH = "/v1/messages/count_tokens"
TOOL = {"name": "get_weather", "description": "w" * 100, "input_schema": {"type": "object"}}
TEXT = {"type": "text", "text": "b" * 40}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x" * 100_000}}


def body(*blocks: dict[str, Any], **fields: Any) -> bytes:
    content = list(blocks) or "a" * 40
    return orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": content}], **fields})


def written(value: Any) -> float:
    return len(orjson.dumps(value)) / 4


@pytest.mark.parametrize(
    ("blocks", "fields", "tokens"),
    [
        ((), {}, 10),
        ((), {"system": "s" * 20, "max_tokens": 5, "metadata": {"user_id": "u" * 99}}, 15),
        ((TEXT, TEXT), {"system": [{"type": "text", "text": "s" * 20}]}, 25),
        ((), {"tools": [TOOL]}, 10 + written([TOOL])),
        ((TEXT, PICTURE), {}, 10 + TOKENS_PER_FILE),
        (({"type": "document", "source": {"type": "file", "file_id": "f"}},), {}, TOKENS_PER_FILE),
        (({"type": "tool_result", "tool_use_id": "t", "content": "r" * 400},), {}, 100),
        (({"type": "tool_result", "tool_use_id": "t", "content": [TEXT, PICTURE]}, TEXT), {}, 20 + TOKENS_PER_FILE),
        ((call := {"type": "tool_use", "id": "t", "name": "f", "input": {"x": "é" * 400}},), {}, written(call) - 100),
        (({"type": "thinking", "thinking": "t" * 40, "signature": "s" * 4000},), {}, 20),
        ((plain := {"type": "document", "source": {"type": "text", "data": "d" * 4000}},), {}, written(plain)),
    ],
)
def test_texts_tools_and_files_count_and_nothing_else_does(
    blocks: tuple[dict[str, Any], ...], fields: dict[str, Any], tokens: float
) -> None:
    assert math.ceil(input_tokens(MESSAGES.parse(body(*blocks, **fields)))) == pytest.approx(tokens, abs=1.0)


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
