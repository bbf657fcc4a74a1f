"""Stored parts of an answer, and answers that are too long or have no id."""

from __future__ import annotations

from typing import Any

import pytest

from coe import json_text
from gateway.stored_responses import conversation
from gateway.stored_responses.conversation import (
    MAX_TURNS,
    StoredResponse,
    entries_of,
    request_part,
)
from tests.nesting import is_serializable, nested

ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
ANSWER: dict[str, Any] = {"id": "resp_1", "output": [ITEM, {"type": "compaction"}]}
INPUT = [{"role": "user", "content": "hi \ud800"}]


def test_an_answer_is_stored_with_its_items_and_read_again() -> None:
    stored = StoredResponse(ANSWER, INPUT, ("resp_0",))
    entries = entries_of(ANSWER, request_part(INPUT, ("resp_0",)))
    assert set(entries) == {"r:resp_1", "i:msg_1"}
    assert StoredResponse.of(json_text.loads(entries["r:resp_1"])) == stored
    assert stored.items == [*INPUT, *ANSWER["output"]]


def test_long_answers_and_conversations_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert request_part(INPUT, ("resp_0",) * (MAX_TURNS - 1))
    assert not request_part(INPUT, ("resp_0",) * MAX_TURNS)
    monkeypatch.setattr(conversation, "MAX_ENTRY_BYTES", 300)
    assert entries_of(ANSWER, request_part(INPUT, ()))
    for length, has_part in ((300, False), (200, True)):
        part = request_part([{"role": "user", "content": "x" * length}], ())
        assert bool(part) is has_part
    assert entries_of(ANSWER, part) == {}


def test_an_answer_that_is_nested_too_deeply_is_not_stored() -> None:
    for depth, is_stored in ((300, True), (1000, is_serializable(nested(1000)))):
        assert bool(entries_of({**ANSWER, "metadata": nested(depth)}, request_part(INPUT, ()))) is is_stored
        assert bool(request_part([{"metadata": nested(depth)}], ())) is is_stored
