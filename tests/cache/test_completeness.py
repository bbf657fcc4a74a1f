"""Damaged entries, and the memory of answers on their way."""

from __future__ import annotations

import orjson
import pytest
from pydantic import ValidationError

from coe.experts.http.replies import SMALL_ANSWER
from gateway.request.cached_answer import CachedAnswer, CacheUse
from tests.experts.answer_memory import Memory

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


HEAD, BODY = ENTRY.to_bytes().split(b"\n")


@pytest.mark.parametrize(
    "stored",
    [
        *(b"", b"{}\nbody", b"[]\n", b"\xff\n", b'{"media_type": "x"}'),
        *(
            orjson.dumps({**orjson.loads(HEAD), name: value}) + b"\n" + BODY
            for name, value in (("confidence", "x"), ("input_tokens", "q"), ("expert", 7), ("probabilities", ["q"]))
        ),
    ],
)
def test_an_entry_in_another_form_is_not_read_as_an_answer(stored: bytes) -> None:
    assert CachedAnswer.from_bytes(ENTRY.to_bytes()) == ENTRY
    with pytest.raises(ValidationError):
        CachedAnswer.from_bytes(stored)


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
