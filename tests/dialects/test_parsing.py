"""Fields that each dialect reads from a body, and its errors for an invalid one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coe.core import Chat, Message
from coe.errors import InvalidRequest
from gateway.dialects import Dialect
from gateway.dialects.chat import COMPLETIONS, EMBEDDINGS
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES


def parsed(dialect: Dialect, **fields: Any) -> Chat:
    return dialect.parse(orjson.dumps({"model": "auto", **fields}))


def turns(found: Chat) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in found.messages]


def test_a_responses_body_is_instructions_and_items() -> None:
    items = [
        {"role": "user", "content": "first"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "answer"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "result"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "other"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "then"}, {"type": "input_file"}]},
    ]
    found = parsed(RESPONSES, instructions="be kind", input=items, stream=True, vendor={"kept": 1})
    assert turns(found) == [
        ("system", "be kind"),
        ("user", "first"),
        ("assistant", "answer"),
        ("assistant", ""),
        ("assistant", ""),
        ("tool", "result"),
        ("tool", "other"),
        ("user", "then"),
    ]
    assert [message.call_id for message in found.messages if message.role == "tool"] == ["c", "d"]
    assert found.stream
    assert found.characters == len("be kindfirstanswerresultotherthen")
    assert found.fields["vendor"] == {"kept": 1}
    assert turns(parsed(RESPONSES, input="hi")) == [("user", "hi")]


def test_a_messages_body_is_system_and_blocks_and_tool_results_are_no_words_of_the_user() -> None:
    found = parsed(
        MESSAGES,
        system=[{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "first"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "answer"}],
            },
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "result"}]},
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "more"}]},
                    {"type": "text", "text": "then"},
                ],
            },
        ],
    )
    assert turns(found) == [
        ("system", "be kind"),
        ("user", "first"),
        ("assistant", "answer"),
        ("assistant", ""),
        ("tool", "result"),
        ("tool", "more"),
        ("user", "then"),
    ]


def test_prompts_of_the_legacy_api_are_one_message_and_count_by_the_longest() -> None:
    found = parsed(COMPLETIONS, prompt=["short", "longer one"])
    assert found.messages == (Message("user", "short\nlonger one"),)
    assert found.characters == len("longer one")
    assert parsed(COMPLETIONS, prompt=[1, 2, 3]).characters == 3
    assert parsed(COMPLETIONS, prompt=[[1, 2], [3]]).characters == 2


def test_the_input_of_embeddings_is_not_routed_by() -> None:
    found = parsed(EMBEDDINGS, input=["a", "bcd"])
    assert (found.messages, found.characters, found.needs) == ((), 3, frozenset())


WRONG: list[tuple[Dialect, bytes, str | None]] = [
    (RESPONSES, b'{"model":"auto"}', "input"),
    (RESPONSES, b'{"model":"auto","input":[]}', "input"),
    (RESPONSES, b'{"model":"auto","input":[5]}', "input[0]"),
    (RESPONSES, b'{"model":"auto","input":[{"role":"boss","content":"x"}]}', "input[0].role"),
    (RESPONSES, b'{"model":"auto","input":[{"role":"user","content":5}]}', "input[0].content"),
    (RESPONSES, b'{"model":"auto","input":"x","instructions":5}', "instructions"),
    (RESPONSES, b'{"model":"auto","input":"x","background":true}', "background"),
    (RESPONSES, b'{"input":"x"}', "model"),
    (MESSAGES, b'{"model":"auto"}', "messages"),
    (MESSAGES, b'{"model":"auto","messages":[5]}', "messages[0]"),
    (MESSAGES, b'{"model":"auto","messages":[{"role":"tool","content":"x"}]}', "messages[0].role"),
    (MESSAGES, b'{"model":"auto","messages":[{"role":["user"],"content":[]}]}', "messages[0].role"),
    (MESSAGES, b'{"model":"auto","messages":[{"role":"user","content":[5]}]}', "messages[0].content[0]"),
    (
        MESSAGES,
        b'{"model":"auto","messages":[{"role":"user","content":[{"type":"tool_result","content":5}]}]}',
        "messages[0].content[0].content",
    ),
    (MESSAGES, b'{"model":"auto","messages":[{"role":"user","content":"x"}],"system":5}', "system"),
    (MESSAGES, b'{"model":"auto","messages":[{"role":"user","content":"x"}],"stream":"yes"}', "stream"),
    (COMPLETIONS, b'{"model":"auto"}', "prompt"),
    (COMPLETIONS, b'{"model":"auto","prompt":[]}', "prompt"),
    (COMPLETIONS, b'{"model":"auto","prompt":["x",5]}', "prompt"),
    (EMBEDDINGS, b'{"model":"auto","input":{"a":1}}', "input"),
    (EMBEDDINGS, b'{"model":"","input":"x"}', "model"),
    (EMBEDDINGS, b"[]", None),
]


@pytest.mark.parametrize(("dialect", "body", "param"), WRONG)
def test_the_error_of_a_wrong_body_names_the_field(dialect: Dialect, body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        dialect.parse(body)
    assert raised.value.param == param


def test_stored_state_is_accepted_for_a_pinned_expert() -> None:
    body = b'{"model":"coder","input":"x","previous_response_id":"resp_1"}'
    assert RESPONSES.parse(body).fields["previous_response_id"] == "resp_1"
