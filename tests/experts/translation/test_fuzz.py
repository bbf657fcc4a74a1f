"""Anything that the dialects accept is translated or refused, and any chat answer is translated or a ValueError."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.errors import InvalidRequest
from coe.experts.translation import messages_api, responses_api
from coe.experts.translation.chat import ChatReader
from coe.experts.translation.expert import WRONG_TYPE, dropped_parts
from coe.experts.translation.messages_api import MessageBuilder
from coe.experts.translation.responses_api import ResponseBuilder
from coe.usage import Usage
from gateway.dialects.messages import MESSAGES
from gateway.dialects.responses import RESPONSES

_NAMES = (
    "role content type text tools name call_id arguments output input tool_use_id source data media_type url file_data "
    "image_url namespace input_schema format effort schema thinking budget_tokens output_config reasoning tool_choice "
    "include parameters strict summary id stop_sequences max_tokens system instructions mode title input_audio"
)
_WORDS = (
    "auto user assistant system developer message function_call function_call_output custom_tool_call reasoning text "
    "input_text output_text refusal input_image input_file input_audio image document search_result tool_use "
    "tool_result thinking server_tool_use base64 url content function custom namespace allowed_tools json_schema "
    "enabled grammar item_reference tool"
)
REFUSED = (InvalidRequest, *WRONG_TYPE)
names, words = st.sampled_from(_NAMES.split()), st.sampled_from(_WORDS.split())
leaves = st.none() | st.booleans() | st.integers(-9, 9) | words | st.text(max_size=5)


def with_type(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(words, st.dictionaries(names, inner, max_size=6)).map(lambda pair: {**pair[1], "type": pair[0]})


values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5) | with_type(inner),
    max_leaves=20,
)
typed = with_type(values)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"])}, optional={"content": values})
    | st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(typed, max_size=4)}),
    min_size=1,
    max_size=4,
)
others = st.dictionaries(names, values, max_size=6)


@settings(max_examples=40)
@given(fields=others, given_messages=messages)
def test_any_messages_request_is_translated_or_refused(fields: dict[str, Any], given_messages: Any) -> None:
    body = orjson.dumps({**fields, "model": "auto", "messages": given_messages})
    with suppress(*REFUSED):
        chat = MESSAGES.parse(body)
        dropped_parts("messages", chat.fields)
        messages_api.chat_fields(chat.fields)


@settings(max_examples=40)
@given(fields=others, items=st.text(min_size=1, max_size=3) | st.lists(typed, min_size=1, max_size=5) | messages)
def test_any_responses_request_is_translated_or_refused(fields: dict[str, Any], items: Any) -> None:
    body = orjson.dumps({**fields, "model": "auto", "input": items})
    with suppress(*REFUSED):
        chat = RESPONSES.parse(body)
        dropped_parts("responses", chat.fields)
        orjson.dumps(responses_api.chat_fields(chat.fields))
        ResponseBuilder(chat.fields, model="m")


_ANSWER = (
    "choices delta message content reasoning reasoning_content refusal tool_calls function name arguments index id "
    "finish_reason stop_reason logprobs annotations thinking_blocks signature data type url_citation"
)
answers = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_ANSWER.split()), inner, max_size=5),
    max_leaves=30,
)
choices = st.dictionaries(st.sampled_from(["delta", "message", "finish_reason", "logprobs"]), answers, max_size=4)


@settings(max_examples=40)
@given(sent=st.lists(choices | answers, max_size=5))
def test_any_chat_answer_is_translated_or_a_value_error(sent: list[Any]) -> None:
    for builder in (ResponseBuilder({}, model="m"), MessageBuilder(model="m")):
        reader = ChatReader()
        with suppress(ValueError):
            for choice in sent:
                for delta in reader.deltas(b"data: %b\n\n" % orjson.dumps({"choices": [choice]})):
                    orjson.dumps(builder.add(delta))
            orjson.dumps(builder.end(Usage()))
        with suppress(ValueError):
            ChatReader().whole({"choices": sent})
