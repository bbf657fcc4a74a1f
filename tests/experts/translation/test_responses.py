"""Responses on an expert that speaks chat only. The shapes are checked with the types of OpenAI's own client."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from coe.core import Call, Reply
from coe.errors import ExpertInvalidResponse, InvalidRequest
from coe.experts.translation.expert import dropped_parts
from coe.experts.translation.tools import MAX_CLIENT_NAME
from tests.experts.translation.chat_expert import ChatExpert, ChatReply, answer, sent
from tests.nesting import is_serializable, nested

pytestmark = pytest.mark.anyio
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE = TypeAdapter(Response)


def call_delta(index: int, name: str, *arguments: str) -> list[dict[str, Any]]:
    opening = {"index": index, "id": f"call_{index}", "function": {"name": name, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": part}} for part in arguments]
    return [{"tool_calls": [one]} for one in (opening, *rest)]


TOOLS: Any = [
    {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True},
    {"type": "custom", "name": "patch", "description": "Patches."},
    {
        "type": "namespace",
        "name": "crm",
        "description": "CRM",
        "tools": [{"type": "function", "name": "find", "parameters": {}}],
    },
    {"type": "web_search"},
]
ANSWERS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "text": ([{"role": "assistant", "content": ""}, {"content": "Par"}, {"content": "is."}], "stop"),
    "reasoning": ([{"reasoning_content": "Fra"}, {"reasoning_content": "nce."}, {"content": "Paris."}], "stop"),
    "newer reasoning": ([{"reasoning": "Fra"}, {"reasoning": "nce."}, {"content": "Paris."}], "stop"),
    "refusal": ([{"refusal": "I can"}, {"refusal": "not."}], "stop"),
    "calls": (
        [{"content": "Let me see."}, *call_delta(0, "look", '{"a"', ":1}"), *call_delta(1, "look", "{}")],
        "tool_calls",
    ),
    "namespace": (call_delta(0, "crm__find", "{}"), "tool_calls"),
    "nothing": ([], "stop"),
    "cut": ([{"content": "Par"}], "length"),
    "filtered": ([{"content": "Par"}], "content_filter"),
}


async def both(kind: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    deltas, reason = ANSWERS[kind]
    (plain,) = await answer(ChatExpert(*deltas, reason=reason), "responses", tools=TOOLS, **fields)
    events = await answer(ChatExpert(*deltas, reason=reason), "responses", stream=True, tools=TOOLS, **fields)
    return plain, events


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        times = ("id", "item_id", "created_at", "completed_at")
        return {name: without_ids(one) for name, one in value.items() if name not in times}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


OUTPUTS: dict[str, list[dict[str, Any]]] = {
    "reasoning": [{"summary": [{"type": "summary_text", "text": "France."}]}, {"type": "message"}],
    "newer reasoning": [{"summary": [{"type": "summary_text", "text": "France."}]}, {"type": "message"}],
    "refusal": [{"content": [{"type": "refusal", "refusal": "I cannot."}]}],
    "calls": [{"type": "message"}, {"type": "function_call", "arguments": '{"a":1}'}, {"arguments": "{}"}],
    "namespace": [{"type": "function_call", "call_id": "call_0", "name": "find", "namespace": "crm"}],
    "cut": [{"status": "incomplete"}],
}
"""Fields of the items of the output."""
STATES = {"cut": {"reason": "max_output_tokens"}, "filtered": {"reason": "content_filter"}}


@pytest.mark.parametrize("kind", ANSWERS)
async def test_plain_and_streamed_answers_are_the_same_and_follow_openais_types(kind: str) -> None:
    plain, events = await both(kind)
    assert without_ids(events[-1]["response"]) == without_ids(plain)
    RESPONSE.validate_python(plain)
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["output"] == []
    for name in ("added", "done"):
        items = [event["item"] for event in events if event["type"] == f"response.output_item.{name}"]
        assert [item["id"] for item in items] == [item["id"] for item in events[-1]["response"]["output"]]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    texts = "".join(event["delta"] for event in events if event["type"].endswith("delta"))
    assert texts == "".join(text for delta in ANSWERS[kind][0] for text in _texts(delta))
    for item, expected in zip(plain["output"], OUTPUTS.get(kind, plain["output"]), strict=True):
        assert item == item | expected
    assert plain["incomplete_details"] == STATES.get(kind)
    assert events[-1]["type"] == f"response.{'incomplete' if kind in STATES else 'completed'}"
    assert plain["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }


def _texts(delta: dict[str, Any]) -> list[str]:
    calls = [call["function"]["arguments"] for call in delta.get("tool_calls", ())]
    return [*(delta.get(name, "") for name in ("reasoning_content", "reasoning", "content", "refusal")), *calls]


async def test_tools_become_functions_and_built_in_ones_are_left_out() -> None:
    body = await sent("responses", tools=TOOLS, tool_choice={"type": "function", "name": "find", "namespace": "crm"})
    functions = [tool["function"] for tool in body["tools"]]
    assert [function["name"] for function in functions] == ["look", "crm__find"]
    assert functions[0]["strict"] is True
    assert body["tool_choice"] == {"type": "function", "function": {"name": "crm__find"}}
    fields = {"input": "hi", "tools": TOOLS, "top_logprobs": 2}
    assert dropped_parts("responses", fields) == (
        "custom",
        "web_search",
        "top_logprobs",
    )
    only = await sent("responses", tools=[{"type": "web_search"}], tool_choice="required", parallel_tool_calls=True)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & only.keys()


async def test_a_name_that_every_tool_of_a_namespace_would_repeat_has_a_bound() -> None:
    tools = [{"type": "function", "name": "find"}]
    await sent("responses", tools=[{"type": "namespace", "name": "s" * MAX_CLIENT_NAME, "tools": tools}])
    with pytest.raises(InvalidRequest, match=f"at most {MAX_CLIENT_NAME} characters"):
        await sent("responses", tools=[{"type": "namespace", "name": "s" * (MAX_CLIENT_NAME + 1), "tools": tools}])


async def test_the_items_of_a_loop_become_the_messages_of_chat() -> None:
    items: Any = [
        {"role": "developer", "content": [{"type": "input_text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "data:x", "detail": "low"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Yes.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "a", "name": "find", "namespace": "crm", "arguments": "{}"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [{"type": "input_text", "text": "seen"}, {"type": "input_image", "image_url": "data:y"}],
        },
        {"role": "user", "content": "and?"},
    ]
    body = await sent("responses", input=items, instructions="Be kind.", tools=TOOLS)
    image = {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}
    assert body["messages"] == [
        {"role": "system", "content": "Be kind.\n\nBe brief."},
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {
            "role": "assistant",
            "content": "Yes.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "crm__find", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "seen"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:y"}}, {"type": "text", "text": "and?"}],
        },
    ]
    assert dropped_parts("responses", {"input": items}) == ("web_search_call",)


async def test_settings_reach_the_server_under_the_names_of_chat() -> None:
    schema = {"type": "json_schema", "name": "p", "schema": {"type": "object"}, "strict": True}
    body = await sent(
        "responses",
        reasoning={"effort": "xhigh", "summary": "auto"},
        text={"format": schema, "verbosity": "low"},
        max_output_tokens=7,
        temperature=0.5,
        top_k=3,
        store=True,
        metadata={"a": "b"},
        prompt_cache_key="k",
    )
    assert {name: value for name, value in body.items() if name != "messages"} == {
        "stream": False,
        "reasoning_effort": "high",
        "verbosity": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "p", "schema": {"type": "object"}, "strict": True},
        },
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
    }


async def test_fields_that_were_sent_come_back_as_sent() -> None:
    fields: dict[str, Any] = {
        "instructions": "Be kind.",
        "max_output_tokens": 7,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "s",
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "tool_choice": "required",
        "tools": TOOLS,
        "top_p": 0.9,
        "truncation": "auto",
        "user": "u",
    }
    (plain,) = await answer(ChatExpert({"content": "{}"}), "responses", **fields)
    assert {name: plain[name] for name in fields} == fields
    events = await answer(ChatExpert({"content": "{}"}), "responses", stream=True, **fields)
    assert {name: events[0]["response"][name] for name in fields} == fields


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]},
            "input[0].content[0].file_data",
        ),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice"),
        ({"reasoning": {"effort": "utmost"}}, "reasoning.effort"),
    ],
)
async def test_what_cannot_be_translated_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    chat = ChatExpert({"content": "hi"})
    with pytest.raises(InvalidRequest) as refused:
        await answer(chat, "responses", **fields)
    assert refused.value.param == param
    assert not chat.calls


def _nested(depth: int) -> list[dict[str, Any]]:
    """Requests with this depth in what only the response repeats."""
    deep = nested(depth)
    return [{"metadata": {"a": deep}}, {"tools": [{"type": "web_search", "filters": deep}]}]


@pytest.mark.parametrize("stream", [False, True])
async def test_deep_nesting_is_translated_or_refused(stream: bool) -> None:
    chat = ChatExpert({"content": "hi"})
    for fields in _nested(500):
        assert await answer(chat, "responses", stream=stream, **fields)
    is_refused = not is_serializable(nested(1000))
    for fields in _nested(1000):
        with pytest.raises(InvalidRequest, match="nested too deeply") if is_refused else nullcontext():
            assert await answer(chat, "responses", stream=stream, **fields)


@pytest.mark.parametrize("api", ["messages", "responses"])
async def test_a_wrong_type_that_no_check_names_is_refused(api: Any) -> None:
    own = {"input": [{"role": "user", "content": 5}]} if api == "responses" else {"messages": 5}
    for fields in (own, {"tools": 5}, {"reasoning": "high", "thinking": 5}, {"text": [1], "output_config": [1]}):
        with pytest.raises(InvalidRequest, match="wrong type"):
            await answer(ChatExpert({"content": "hi"}), api, **fields)


async def test_an_answer_in_another_form_is_an_invalid_response() -> None:
    for index, calls in ((2, call_delta(0, "look", "{}")), (0, [*call_delta(0, "look"), *call_delta(1, "look")])):
        late = {"tool_calls": [{"index": index, "function": {"arguments": "}"}}]}
        with pytest.raises(ExpertInvalidResponse, match="out of order"):
            await answer(ChatExpert(*calls, late), "responses", stream=True)
    with pytest.raises(ExpertInvalidResponse, match="other than a Chat Completions answer"):
        await answer(_WithoutChoice(), "responses")


class _WithoutChoice(ChatExpert):
    async def stream(self, call: Call) -> Reply:
        self.replies.append(ChatReply([b'{"choices":[]}'], "application/json"))
        return self.replies[-1]
