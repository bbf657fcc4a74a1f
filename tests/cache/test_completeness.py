"""Which answers of each API are complete."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.core import Api
from coe.experts.http.sse import DONE, EVENT_STREAM
from gateway.cache.answer import CachedAnswer, is_complete
from tests.recipes.members import answer, event, stream


def events(*found: dict[str, Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (one["type"].encode(), orjson.dumps(one)) for one in found)


def response_of(status: str, *types: str) -> dict[str, Any]:
    return {"id": "resp_1", "status": status, "output": [{"type": one} for one in types]}


MESSAGE_STREAM = [{"type": "message_start", "message": {}}, {"type": "content_block_delta", "delta": {"text": "hi"}}]


@pytest.mark.parametrize(
    ("api", "body", "complete"),
    [
        ("chat", answer("x")[0], True),
        ("chat", answer("x", finish="length")[0], False),
        ("chat", b'{"choices": [{"finish_reason": null}]}', False),
        ("chat", b"[]", False),
        ("chat", b"not JSON", False),
        ("completions", b'{"choices": [{"text": "x", "finish_reason": "stop"}]}', True),
        ("responses", orjson.dumps(response_of("completed", "reasoning", "message")), True),
        ("responses", orjson.dumps(response_of("incomplete", "message")), False),
        ("responses", orjson.dumps(response_of("completed", "function_call")), False),
        ("messages", b'{"content": [], "stop_reason": "end_turn"}', True),
        ("messages", b'{"content": [], "stop_reason": "stop_sequence"}', True),
        ("messages", b'{"content": [], "stop_reason": "max_tokens"}', False),
        ("messages", b'{"content": [], "stop_reason": "refusal"}', False),
        ("messages", b'{"content": [], "stop_reason": "tool_use"}', False),
    ],
)
def test_plain_answers(api: Api, body: bytes, complete: bool) -> None:
    assert is_complete(body, api=api, media_type="application/json", choices=1) is complete


@pytest.mark.parametrize(
    ("api", "body", "complete"),
    [
        ("chat", b"".join(stream("a", "b")), True),
        ("chat", b"".join(stream("a", finish="length")), False),
        ("chat", b"".join(stream("a")).removesuffix(DONE), False),
        ("chat", event("a") + DONE, False),
        ("chat", event('it says "finish_reason": "stop"') + DONE, False),
        ("responses", events({"type": "response.completed", "response": response_of("completed", "message")}), True),
        ("responses", events({"type": "response.incomplete", "response": response_of("incomplete")}), False),
        ("messages", events(*MESSAGE_STREAM, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}), True),
        ("messages", events(*MESSAGE_STREAM, {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}}), False),
        ("messages", events(*MESSAGE_STREAM), False),
    ],
)
def test_streams(api: Api, body: bytes, complete: bool) -> None:
    assert is_complete(body, api=api, media_type=EVENT_STREAM, choices=1) is complete


@pytest.mark.parametrize("stored", [b"", b"{}\nbody", b"[]\n", b"\xff\n", b'{"media_type": "x"}'])
def test_an_entry_in_another_form_is_not_read_as_an_answer(stored: bytes) -> None:
    with pytest.raises(ValueError, match="not a cached answer"):
        CachedAnswer.from_bytes(stored)
