"""Conversations and answers that are too long or too deep to be stored."""

from __future__ import annotations

from gateway.stored_responses import MAX_TURNS, StoredUse, entries_of, request_part
from tests.nesting import is_serializable, nested

ANSWER = {"id": "resp_1", "output": [{"id": "msg_1", "type": "message"}, {"type": "compaction"}]}
INPUT = [{"role": "user", "content": "hi \ud800"}]


def test_a_conversation_of_too_many_answers_is_not_stored() -> None:
    assert request_part(INPUT, ("resp_0",) * (MAX_TURNS - 1), None)
    assert not request_part(INPUT, ("resp_0",) * MAX_TURNS, None)


def test_an_answer_that_is_nested_too_deeply_is_not_stored() -> None:
    use = StoredUse("", None, request_part(INPUT, (), None))
    for depth, is_stored in ((300, True), (1000, is_serializable(nested(1000)))):
        assert bool(entries_of({**ANSWER, "metadata": nested(depth)}, use)) is is_stored
        assert bool(request_part([{"metadata": nested(depth)}], (), None)) is is_stored
