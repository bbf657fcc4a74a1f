"""Complete and incomplete answers of each API."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import ValidationError

from coe.core import Api, Prediction
from coe.experts.held_answer import SMALL_ANSWER
from coe.experts.http.sse import DONE, EVENT_STREAM
from gateway.cache.answer import CachedAnswer, CacheUse, is_complete
from tests.experts.answer_memory import Memory
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


def test_the_number_of_choices_that_was_requested_is_not_allocated() -> None:
    assert not is_complete(answer("x")[0], api="chat", media_type="application/json", choices=2**48)


ENTRY = CachedAnswer(
    "application/json", b"body", "a", "a", "code", 0.5, Prediction(np.ones(2, np.float32), "fast"), 3, 5
)


@pytest.mark.parametrize(
    ("field", "value"),
    [("confidence", "x"), ("confidence", None), ("tokens", [1, "q"]), ("tokens", [1]), ("expert", 7), ("stage", None)],
)
def test_an_entry_with_a_value_of_another_type_is_not_read_as_an_answer(field: str, value: Any) -> None:
    assert CachedAnswer.from_bytes(ENTRY.to_bytes()).body == b"body"
    head, _, body = ENTRY.to_bytes().partition(b"\n")
    with pytest.raises(ValidationError):
        CachedAnswer.from_bytes(orjson.dumps({**orjson.loads(head), field: value}) + b"\n" + body)


def test_the_bytes_of_answers_on_their_way_take_the_memory_for_answers() -> None:
    memory, part = Memory(limit=5 * SMALL_ANSWER), bytes(SMALL_ANSWER)
    first, second = (CacheUse(b"key", None, choices=1, memory=memory) for _ in range(2))
    for _ in range(3):
        first.keep(part)
        second.keep(part)  # the second answer does not fit beside the first
    assert (first.body, second.body, memory.held) == (3 * part, None, 3 * SMALL_ANSWER)
    second.keep(b"7")
    assert (second.body, memory.held) == (None, 3 * SMALL_ANSWER)
    first.release()
    assert memory.held == 0


@pytest.mark.parametrize("stored", [b"", b"{}\nbody", b"[]\n", b"\xff\n", b'{"media_type": "x"}'])
def test_an_entry_in_another_form_is_not_read_as_an_answer(stored: bytes) -> None:
    with pytest.raises(ValidationError):
        CachedAnswer.from_bytes(stored)
