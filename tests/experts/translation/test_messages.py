"""Messages on an expert that speaks chat only. The shapes are checked with the types of Anthropic's own client."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from coe.errors import InvalidRequest
from coe.experts.translation.expert import dropped_parts
from tests.experts.translation.chat_expert import ChatExpert, answer, sent
from tests.experts.translation.test_responses import call_delta

pytestmark = pytest.mark.anyio
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
MESSAGE = TypeAdapter(Message)
LOOK: Any = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
SEARCH: Any = {"type": "web_search_20250305", "name": "web_search"}
ANSWERS: dict[str, tuple[list[dict[str, Any]], str, str, list[dict[str, Any]]]] = {
    "text": ([{"content": "Par"}, {"content": "is."}], "stop", "end_turn", [{"type": "text", "text": "Paris."}]),
    "reasoning": (
        [{"reasoning": "Fra"}, {"reasoning": "nce."}, {"content": "Paris."}],
        "stop",
        "end_turn",
        [{"type": "thinking", "thinking": "France.", "signature": ""}, {"type": "text", "text": "Paris."}],
    ),
    "refusal": (
        [{"refusal": "I can"}, {"refusal": "not."}],
        "stop",
        "refusal",
        [{"type": "text", "text": "I cannot."}],
    ),
    "calls": (
        [{"content": "Ah."}, *call_delta(0, "look", '{"a"', ":1}"), *call_delta(1, "look", "")],
        "tool_calls",
        "tool_use",
        [
            {"type": "text", "text": "Ah."},
            {"type": "tool_use", "id": "call_0", "name": "look", "input": {"a": 1}},
            {"type": "tool_use", "id": "call_1", "name": "look", "input": {}},
        ],
    ),
    "calls that end as a text": (
        call_delta(0, "look", "{}"),
        "stop",
        "tool_use",
        [{"type": "tool_use", "id": "call_0", "name": "look", "input": {}}],
    ),
    "nothing": ([], "stop", "end_turn", []),
    "cut": ([{"content": "Par"}], "length", "max_tokens", [{"type": "text", "text": "Par"}]),
    "filtered": ([{"content": "Par"}], "content_filter", "refusal", [{"type": "text", "text": "Par"}]),
}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_plain_and_streamed_answers_are_the_same_and_follow_anthropics_types(kind: str) -> None:
    deltas, reason, stop, content = ANSWERS[kind]
    (plain,) = await answer(ChatExpert(*deltas, reason=reason), "messages", tools=[LOOK])
    MESSAGE.validate_python(plain)
    assert (plain["content"], plain["stop_reason"], plain["model"]) == (content, stop, "clever")
    assert plain["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
    }
    events = await answer(ChatExpert(*deltas, reason=reason), "messages", stream=True, tools=[LOOK])
    for event in events:
        EVENT.validate_python(event)
    assert [event["type"] for event in (events[0], events[-1])] == ["message_start", "message_stop"]
    assert events[-2]["usage"] == plain["usage"]
    assert events[-2]["delta"]["stop_reason"] == stop
    openings = [event["index"] for event in events if event["type"] == "content_block_start"]
    assert openings == [e["index"] for e in events if e["type"] == "content_block_stop"] == list(range(len(content)))
    texts: list[str] = ["" for _ in content]
    for event in events:
        if event["type"] == "content_block_delta":
            texts[event["index"]] += next(value for name, value in event["delta"].items() if name != "type")
    expected = [block.get("text") or block.get("thinking") for block in content]
    assert [text for text, block in zip(texts, content, strict=True) if block["type"] != "tool_use"] == list(
        filter(None, expected)
    )


async def test_a_loop_with_images_documents_and_server_tools_becomes_a_chat() -> None:
    png = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
    messages: Any = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "plum"}},
                {
                    "type": "document",
                    "title": "a.pdf",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {}},
                {"type": "web_search_tool_result", "tool_use_id": "srv", "content": []},
                {"type": "text", "text": "Yes."},
                {"type": "tool_use", "id": "a", "name": "look", "input": {"n": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and?"},
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "seen"}, png]},
            ],
        },
    ]
    body = await sent(
        "messages", system=[{"type": "text", "text": "Be kind."}], messages=messages, tools=[LOOK, SEARCH]
    )
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ=="}}
    pdf = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QQ=="}}
    texts = [{"type": "text", "text": text} for text in ("look", "plum", "and?")]
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"n":1}'}}
    assert body["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [texts[0], texts[1], pdf]},
        {"role": "assistant", "content": "Yes.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "seen"},
        {"role": "user", "content": [picture, texts[2]]},
    ]
    function = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
    assert body["tools"] == [{"type": "function", "function": function}]
    dropped = ("web_search_20250305", "server_tool_use", "web_search_tool_result")
    assert dropped_parts("messages", {"messages": messages, "tools": [LOOK, SEARCH]}) == dropped


async def test_the_error_of_a_result_and_tools_without_a_schema_are_left_out() -> None:
    result = {"type": "tool_result", "tool_use_id": "a", "content": "no such file", "is_error": True}
    bash = {"type": "bash_20250124", "name": "bash"}
    fields = {"messages": [{"role": "user", "content": [result]}], "tools": [LOOK, bash]}
    body = await sent("messages", **fields)
    assert body["messages"] == [{"role": "tool", "tool_call_id": "a", "content": "no such file"}]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["look"]
    assert dropped_parts("messages", fields) == ("bash_20250124",)


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "low"),
        ({"thinking": {"type": "enabled", "budget_tokens": 8192}}, "medium"),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "high"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "high"),
        ({"output_config": {"effort": "low"}}, "low"),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, None),
    ],
)
async def test_thinking_reaches_the_server_as_a_reasoning_effort(fields: dict[str, Any], effort: str | None) -> None:
    assert (await sent("messages", **fields)).get("reasoning_effort") == effort


async def test_other_settings_reach_the_server_under_the_names_of_chat() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = await sent(
        "messages", max_tokens=7, top_k=3, output_config={"format": form}, tools=[LOOK], tool_choice=choice
    )
    assert (body["max_tokens"], body["top_k"], body["tool_choice"], body["parallel_tool_calls"]) == (
        7,
        3,
        "required",
        False,
    )
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"output_config": {"effort": "utmost"}}, "output_config.effort"),
        ({"tools": [LOOK], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "u"}}]}]},
            "messages[0].content[0].source.type",
        ),
    ],
)
async def test_what_cannot_be_translated_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await sent("messages", **fields)
    assert refused.value.param == param
