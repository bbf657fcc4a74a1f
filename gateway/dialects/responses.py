"""Parses requests of OpenAI's Responses API into a `Chat`, the routing view, and writes the API's errors.

It reads instructions and input items. `gateway.chat` uses the `Dialect` of the API.
"""

from __future__ import annotations

from typing import Any

import orjson

from coe.core import Chat, Message
from coe.errors import InvalidRequest, RequestError
from gateway.dialects import Dialect, body_of
from gateway.dialects.chat import (
    Needs,
    call_id_of,
    chat_of,
    parse_message,
    parse_object,
    text_of,
    type_of,
)

ROLES = ("system", "developer", "user", "assistant")
LOGPROBS_ITEM = "message.output_text.logprobs"
"""Item of `include` that requests log probabilities."""
TOOL_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def _parse(body: bytes | bytearray) -> Chat:
    """The routing view of a body. Raises InvalidRequest that names the field."""
    return read(parse_object(body))


def read(fields: dict[str, Any]) -> Chat:
    """The routing view of a parsed body. Raises InvalidRequest that names the field."""
    if fields.get("background"):
        raise InvalidRequest("background answers could not be fetched later: leave background out", param="background")
    needs: Needs = set()
    include = fields.get("include")
    if fields.get("top_logprobs") or (isinstance(include, list) and LOGPROBS_ITEM in include):
        needs.add("logprobs")
    text = fields.get("text")
    output_format = text.get("format") if isinstance(text, dict) else None
    return chat_of(fields, _messages(fields, needs), needs, api="responses", output_format=output_format)


def _error_event(error: RequestError) -> bytes:
    event = {"type": "error", "code": error.code, "message": str(error), "param": error.param, "sequence_number": 0}
    return b"event: error\ndata: %b\n\n" % orjson.dumps(event)


def _messages(fields: dict[str, Any], needs: Needs) -> list[Message]:
    messages = []
    instructions = fields.get("instructions")
    if instructions is not None:
        messages.append(Message("system", text_of(instructions, "instructions", needs)))
    items = fields.get("input")
    if isinstance(items, str):
        return [*messages, Message("user", items)]
    if not isinstance(items, list) or not items:
        raise InvalidRequest("input must be text or a list of at least one item", param="input")
    for index, item in enumerate(items):
        if (message := _message(item, index, needs)) is not None:
            messages.append(message)
    return messages


def _message(item: Any, index: int, needs: Needs) -> Message | None:
    """The message, tool call or tool output of an item; None for other items.

    A call is an empty message of the assistant. So are reasoning, and a reference to an earlier item of an answer.
    """
    if isinstance(item, dict) and item.get("type", "message") == "message":
        return parse_message(item, "input", index, ROLES, needs)
    kind = type_of(item, "input", index)
    if kind.endswith("_call_output"):
        text = text_of(item.get("output"), f"input[{index}].output", needs) if kind in TOOL_OUTPUTS else ""
        return Message("tool", text, call_id_of(item, "call_id"))
    if kind.endswith("_call") or kind in ("reasoning", "item_reference"):
        return Message("assistant", "")
    return None


RESPONSES = Dialect("responses", _parse, body_of, _error_event)
