"""Responses on an expert that speaks chat only. The shapes are checked with the types of OpenAI's own client."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from coe.core import Call, Reply
from coe.errors import ExpertInvalidResponse, InvalidRequest
from coe.experts.translation import conversation
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
    {
        "type": "custom",
        "name": "patch",
        "description": "Patches.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: A"},
    },
    {
        "type": "namespace",
        "name": "crm",
        "description": "CRM",
        "tools": [{"type": "function", "name": "find", "parameters": {}}],
    },
    {"type": "web_search"},
]
FIRST, SECOND, THIRD = (call_delta(n, "look", *parts) for n, parts in enumerate([('{"a"', ":1}"), ("{", "}"), ("{}",)]))
INTERLEAVED = [FIRST[0], SECOND[0], THIRD[0], FIRST[1], THIRD[1], SECOND[1], FIRST[2], SECOND[2]]
ANSWERS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "text": ([{"role": "assistant", "content": ""}, {"content": "Par"}, {"content": "is."}], "stop"),
    "reasoning": ([{"reasoning_content": "Fra"}, {"reasoning_content": "nce."}, {"content": "Paris."}], "stop"),
    "newer reasoning": ([{"reasoning": "France."}, {"content": "Paris."}], "stop"),
    "refusal": ([{"refusal": "I can"}, {"refusal": "not."}], "stop"),
    "calls": (
        [{"content": "Let me see."}, *call_delta(0, "look", '{"a"', ":1}"), *call_delta(1, "look", "{}")],
        "tool_calls",
    ),
    "interleaved calls": (INTERLEAVED, "tool_calls"),
    "custom": (call_delta(0, "patch", '{"input":"*** ', 'Begin"}'), "tool_calls"),
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
    assert plain["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 14,
    }


@pytest.mark.parametrize("kind", ["reasoning", "newer reasoning"])
async def test_reasoning_is_an_item_with_its_summary(kind: str) -> None:
    plain, events = await both(kind)
    thought, message = plain["output"]
    assert thought["type"] == "reasoning"
    assert thought["summary"] == [{"type": "summary_text", "text": "France."}]
    assert message["content"][0]["text"] == "Paris."
    deltas = [event["delta"] for event in events if event["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(deltas) == "France."


async def test_a_refusal_is_not_lost_in_a_stream() -> None:
    plain, events = await both("refusal")
    assert plain["output"][0]["content"] == [{"type": "refusal", "refusal": "I cannot."}]
    deltas = [event["delta"] for event in events if event["type"] == "response.refusal.delta"]
    assert deltas == ["I can", "not."]


@pytest.mark.parametrize(("kind", "reason"), [("cut", "max_output_tokens"), ("filtered", "content_filter")])
async def test_an_answer_that_was_cut_off_is_incomplete(kind: str, reason: str) -> None:
    plain, events = await both(kind)
    assert (plain["status"], plain["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert events[-1]["type"] == "response.incomplete"


async def test_calls_have_the_clients_names_and_kinds() -> None:
    calls, _ = await both("calls")
    assert [item["type"] for item in calls["output"]] == ["message", "function_call", "function_call"]
    assert [item.get("arguments") for item in calls["output"]] == [None, '{"a":1}', "{}"]
    custom, events = await both("custom")
    assert custom["output"][0] | {"id": ""} == {
        "id": "",
        "type": "custom_tool_call",
        "call_id": "call_0",
        "name": "patch",
        "input": "*** Begin",
        "status": "completed",
    }
    assert [event["delta"] for event in events if "delta" in event] == ["*** Begin"]
    namespace, _ = await both("namespace")
    assert (namespace["output"][0]["name"], namespace["output"][0]["namespace"]) == ("find", "crm")


async def test_tools_become_functions_and_built_in_ones_are_left_out() -> None:
    body = await sent("responses", tools=TOOLS, tool_choice={"type": "function", "name": "find", "namespace": "crm"})
    functions = [tool["function"] for tool in body["tools"]]
    assert [function["name"] for function in functions] == ["look", "patch", "crm__find"]
    assert functions[0]["strict"] is True
    assert "lark grammar:\nstart: A" in functions[1]["description"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "crm__find"}}
    assert dropped_parts("responses", {"input": "hi", "tools": TOOLS}) == ("web_search",)
    only = await sent("responses", tools=[{"type": "web_search"}], tool_choice="required", parallel_tool_calls=True)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & only.keys()
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]}
    body = await sent("responses", tools=TOOLS, tool_choice=allowed)
    assert [tool["function"]["name"] for tool in body["tools"]] == ["look"]
    assert body["tool_choice"] == "required"


async def test_a_name_that_every_tool_of_a_namespace_would_repeat_has_a_bound() -> None:
    tools = [{"type": "function", "name": "find"}]
    await sent("responses", tools=[{"type": "namespace", "name": "s" * MAX_CLIENT_NAME, "tools": tools}])
    with pytest.raises(InvalidRequest, match=f"at most {MAX_CLIENT_NAME} characters"):
        await sent("responses", tools=[{"type": "namespace", "name": "s" * (MAX_CLIENT_NAME + 1), "tools": tools}])


async def test_the_system_messages_at_the_beginning_are_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []

    def content(parts: Sequence[dict[str, Any]], joint: str) -> str:
        joined.append(len(text := joint.join(part["text"] for part in parts)))
        return text

    monkeypatch.setattr(conversation, "_content", content)
    body = await sent("responses", input=[{"role": "system", "content": "Be kind."}] * 100)
    assert body["messages"] == [{"role": "system", "content": "\n\n".join(["Be kind."] * 100)}]
    assert sum(joined) == len(body["messages"][0]["content"])


async def test_a_long_namespace_leaves_a_valid_and_unique_name() -> None:
    tools = [{"type": "function", "name": f"{'n' * 60}{end}", "parameters": {}} for end in "ab"]
    body = await sent("responses", tools=[{"type": "namespace", "name": "s" * 30, "description": "", "tools": tools}])
    names = {tool["function"]["name"] for tool in body["tools"]}
    assert len(names) == 2
    assert all(len(name) <= 64 for name in names)


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
        {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "x"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {
            "type": "function_call_output",
            "call_id": "a",
            "output": [{"type": "input_text", "text": "seen"}, {"type": "input_image", "image_url": "data:y"}],
        },
        {"type": "custom_tool_call_output", "call_id": "b", "output": "done"},
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
                {"id": "b", "type": "function", "function": {"name": "patch", "arguments": '{"input":"x"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "seen"},
        {"role": "tool", "tool_call_id": "b", "content": "done"},
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
        top_logprobs=2,
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
        "logprobs": True,
        "top_logprobs": 2,
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


async def test_logprobs_and_citations_are_kept() -> None:
    logprob = {"token": "P", "logprob": -0.5, "bytes": [80], "top_logprobs": []}
    cited = {"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 1}}
    chat = ChatExpert({"content": "P", "annotations": [cited], "logprobs": [logprob]})
    events = await answer(chat, "responses", stream=True, include=["message.output_text.logprobs"])
    assert chat.calls[0].fields["logprobs"] is True
    (part,) = events[-1]["response"]["output"][0]["content"]
    assert part["annotations"] == [{"type": "url_citation", "url": "u", "title": "t", "start_index": 0, "end_index": 1}]
    assert EVENT.validate_python(next(e for e in events if e["type"].endswith("annotation.added")))
    assert part["logprobs"] == [logprob]
    (plain,) = await answer(chat, "responses", top_logprobs=2)
    assert plain["output"][0]["content"] == [part]


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
        ({"tools": "look"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": 5}}, "tool_choice.tools"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": "utmost"}}, "reasoning.effort"),
        ({"text": []}, "text"),
        ({"include": "all"}, "include"),
    ],
)
async def test_what_cannot_be_translated_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    chat = ChatExpert({"content": "hi"})
    with pytest.raises(InvalidRequest) as refused:
        await answer(chat, "responses", **fields)
    assert refused.value.param == param
    assert not chat.calls


def _nested(depth: int) -> list[dict[str, Any]]:
    """Requests with this depth in what becomes text, and in what only the response repeats."""
    deep = nested(depth)
    call = {"type": "custom_tool_call", "call_id": "a", "name": "run", "input": deep}
    return [{"input": [call]}, {"tools": [{"type": "web_search", "filters": deep}]}]


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
    fields = {"input": [{"role": "user", "content": 5}]} if api == "responses" else {"messages": 5}
    with pytest.raises(InvalidRequest, match="wrong type"):
        await answer(ChatExpert({"content": "hi"}), api, **fields)


async def test_an_answer_in_another_form_is_an_invalid_response() -> None:
    unknown = {"tool_calls": [{"index": 2, "function": {"arguments": "}"}}]}
    with pytest.raises(ExpertInvalidResponse, match="out of order"):
        await answer(ChatExpert(*call_delta(0, "look", "{}"), unknown), "responses", stream=True)
    with pytest.raises(ExpertInvalidResponse, match="other than a Chat Completions answer"):
        await answer(_WithoutChoice(), "responses")


async def test_a_text_within_a_call_follows_it_and_each_call_keeps_its_pieces() -> None:
    opening, begin, end = call_delta(0, "look", '{"a"', ":1}")
    chat = ChatExpert(opening, begin, {"content": "Ah"}, end, {"content": "."}, *call_delta(1, "look", "{}"))
    events = await answer(chat, "responses", stream=True)
    kinds = [event["type"] for event in events]
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["function_call", "message", "function_call"]
    assert kinds.count("response.output_text.delta") == 2
    chat = ChatExpert(*call_delta(0, "look", "{}"), *call_delta(1, "look", "{", "}"))
    pieces = [event for event in await answer(chat, "responses", stream=True) if event["type"].endswith("delta")]
    assert [(piece["output_index"], piece["delta"]) for piece in pieces] == [(0, "{}"), (1, "{"), (1, "}")]


class _WithoutChoice(ChatExpert):
    async def stream(self, call: Call) -> Reply:
        self.replies.append(ChatReply([b'{"choices":[]}'], "application/json"))
        return self.replies[-1]
