"""Complete and incomplete answers, and damaged entries."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from coe.experts.held_answer import SMALL_ANSWER
from coe.experts.http.sse import DONE, EVENT_STREAM
from gateway.cache.answer import CachedAnswer, CacheUse, is_complete
from tests.experts.answer_memory import Memory
from tests.recipes.members import answer, event, stream


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        (answer("x")[0], True),
        (answer("x", finish="length")[0], False),
        (b'{"choices": [{"finish_reason": null}]}', False),
        (b"[]", False),
        (b"not JSON", False),
    ],
)
def test_plain_answers(body: bytes, complete: bool) -> None:
    assert is_complete(body, media_type="application/json") is complete


@pytest.mark.parametrize(
    ("body", "complete"),
    [
        (b"".join(stream("a", "b")), True),
        (b"".join(stream("a", finish="length")), False),
        (b"".join(stream("a")).removesuffix(DONE), False),
        (event("a") + DONE, False),
        (event('it says "finish_reason": "stop"') + DONE, False),
    ],
)
def test_streams(body: bytes, complete: bool) -> None:
    assert is_complete(body, media_type=EVENT_STREAM) is complete


ENTRY = CachedAnswer(
    media_type="application/json",
    expert="a",
    answered_by="a",
    category="code",
    confidence=0.5,
    input_tokens=3,
    output_tokens=5,
    probabilities=[0.5, 0.5],
    stage="fast",
    in_distribution=1.0,
    language="en",
    router_probabilities=None,
    body=b"body",
)


@pytest.mark.parametrize(
    ("field", "value"),
    [("confidence", "x"), ("confidence", None), ("input_tokens", "q"), ("expert", 7), ("probabilities", ["q"])],
)
def test_an_entry_with_a_value_of_another_type_is_not_read_as_an_answer(field: str, value: Any) -> None:
    assert CachedAnswer.from_bytes(ENTRY.to_bytes()).body == b"body"
    head, _, body = ENTRY.to_bytes().partition(b"\n")
    with pytest.raises(ValidationError):
        CachedAnswer.from_bytes(orjson.dumps({**orjson.loads(head), field: value}) + b"\n" + body)


def test_the_bytes_of_answers_on_their_way_take_the_memory_for_answers() -> None:
    memory, part = Memory(limit=5 * SMALL_ANSWER), bytes(SMALL_ANSWER)
    first, second = (CacheUse("key", None, memory=memory) for _ in range(2))
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
