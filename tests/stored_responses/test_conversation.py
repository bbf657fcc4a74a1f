"""Stored parts of an answer, and answers that are too long or have no id."""

from __future__ import annotations

from typing import Any

import pytest

from coe import json_text
from coe.core import ExpertRule
from gateway import stored_responses
from gateway.stored_responses import MAX_TURNS, StoredUse, entries_of, is_permitted, request_part
from tests.nesting import is_serializable, nested

ITEM = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
ANSWER: dict[str, Any] = {"id": "resp_1", "output": [ITEM, {"type": "compaction"}]}
INPUT = [{"role": "user", "content": "hi \ud800"}]
LIMITED, LOCAL = ExpertRule("a", ("coder",)), ExpertRule("b", None, only_local=True)


def entries(answer: dict[str, Any] = ANSWER, *previous: str, rule: ExpertRule | None = None) -> dict[str, bytes]:
    return entries_of(answer, StoredUse("", rule, request_part(INPUT, previous, rule)))


def test_an_answer_is_stored_with_its_items() -> None:
    stored = entries(ANSWER, "resp_0")
    assert set(stored) == {"r:resp_1", "i:msg_1"}
    entry = json_text.loads(stored["r:resp_1"])
    assert (entry["response"], entry["input"], entry["previous"]) == (ANSWER, INPUT, ["resp_0"])
    assert json_text.loads(stored["i:msg_1"])["item"] == ITEM


@pytest.mark.parametrize(
    ("stored_by", "continued_by"),
    [
        (None, (None, LIMITED, LOCAL)),
        (LIMITED, (LIMITED,)),
        (LOCAL, (LOCAL,)),
        (ExpertRule("a", ("coder",), only_local=True), ()),
    ],
)
def test_an_answer_is_continued_under_its_own_restriction(
    stored_by: ExpertRule | None, continued_by: tuple[ExpertRule | None, ...]
) -> None:
    for value in entries(rule=stored_by).values():
        entry = json_text.loads(value)
        for rule in (None, LIMITED, LOCAL, ExpertRule("c", ("coder",))):
            expected = rule in continued_by or stored_by is None
            assert is_permitted(entry, rule) is expected, rule
        assert is_permitted(entry, stored_by)


def test_long_answers_and_conversations_are_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert request_part(INPUT, ("resp_0",) * (MAX_TURNS - 1), None)
    assert not request_part(INPUT, ("resp_0",) * MAX_TURNS, None)
    monkeypatch.setattr(stored_responses, "MAX_ENTRY_BYTES", 400)
    assert entries()
    for length, has_part in ((400, False), (280, True)):
        part = request_part([{"role": "user", "content": "x" * length}], (), None)
        assert bool(part) is has_part
    assert entries_of(ANSWER, StoredUse("", None, part)) == {}


def test_an_answer_that_is_nested_too_deeply_is_not_stored() -> None:
    for depth, is_stored in ((300, True), (1000, is_serializable(nested(1000)))):
        assert bool(entries({**ANSWER, "metadata": nested(depth)})) is is_stored
        assert bool(request_part([{"metadata": nested(depth)}], (), None)) is is_stored
