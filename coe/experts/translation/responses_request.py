"""Translates a Responses request into one of Chat Completions.

What has no counterpart in chat but only adds to the request is left out and reported by `dropped_parts`: tools that
OpenAI's servers run themselves, and the items that record their use. What the answer would be wrong without is refused
with InvalidRequest: state on a server, files by id, a forced tool that does not exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe.errors import InvalidRequest
from coe.experts.translation.conversation import Conversation, image_part, text_field, text_part
from coe.experts.translation.settings import PASSED_FIELDS, add_effort, output_format
from coe.experts.translation.tools import chat_choice, chat_name, read_tools

Fields = Mapping[str, Any]
_STATE = {
    "previous_response_id": "the gateway stores no answers here; send the conversation in `input`",
    "conversation": "conversations are not stored; use previous_response_id, or send the conversation in `input`",
    "prompt": "prompt templates are not stored; send the prompt in `instructions` and `input`",
}
_SILENT_ITEMS = ("reasoning",)
"""Items that chat has no place for, and that most models do not expect."""
_ROLES = {"developer": "system"}
"""Chat templates of open models know no developer."""


def chat_fields(fields: Fields) -> dict[str, Any]:
    """Returns the body for chat. Raises InvalidRequest that names the field."""
    for name, remedy in _STATE.items():
        if fields.get(name):
            raise _unsupported(f"{name} cannot be used: {remedy}", name)
    tools = read_tools(fields.get("tools"))
    body: dict[str, Any] = {"messages": _messages(fields), "stream": bool(fields.get("stream"))}
    body |= {name: fields[name] for name in PASSED_FIELDS if fields.get(name) is not None}
    if (limit := fields.get("max_output_tokens")) is not None:
        body["max_tokens"] = limit
    body |= chat_choice(fields.get("tool_choice"), tools)
    if tools.functions and (parallel := fields.get("parallel_tool_calls")) is not None:
        body["parallel_tool_calls"] = parallel
    add_effort(body, (fields.get("reasoning") or {}).get("effort"), "reasoning.effort")
    _add_text(body, fields.get("text") or {})
    return body


def dropped_parts(fields: Fields) -> tuple[str, ...]:
    """Returns the types of the tools and items, and the fields, that `chat_fields` leaves out."""
    items = fields.get("input")
    kinds = [item.get("type") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    handled = (None, "message", "function_call", "function_call_output", *_SILENT_ITEMS)
    items_left_out = (str(kind) for kind in kinds if kind not in handled)
    fields_left_out = (name for name in ("top_logprobs",) if fields.get(name))
    return (*read_tools(fields.get("tools")).dropped, *items_left_out, *fields_left_out)


def _messages(fields: Fields) -> list[dict[str, Any]]:
    conversation, instructions, items = Conversation(), fields.get("instructions"), fields.get("input")
    if instructions:
        conversation.add("system", _parts(instructions, "instructions"))
    if isinstance(items, str):
        conversation.add("user", [text_part(items)])
    else:
        for index, item in enumerate(items or ()):
            _add_item(conversation, item, f"input[{index}]")
    return conversation.messages


def _add_item(conversation: Conversation, item: Fields, path: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = str(item.get("role"))
        conversation.add(_ROLES.get(role, role), _parts(item.get("content"), f"{path}.content"))
    elif kind == "function_call":
        name = chat_name(text_field(item, "name", path), str(item.get("namespace") or ""))
        conversation.add_call(text_field(item, "call_id", path), name, str(item.get("arguments") or "{}"))
    elif kind == "function_call_output":
        conversation.add_result(text_field(item, "call_id", path), _parts(item.get("output"), f"{path}.output"))
    elif kind == "item_reference":
        message = f"{path} refers to an item that the gateway does not store here; send the item itself"
        raise _unsupported(message, f"{path}.id")


def _parts(content: Any, path: str) -> list[dict[str, Any]]:
    """The parts of a content in chat's form."""
    if content is None or isinstance(content, str):
        return [text_part(content or "")]
    return [part for index, one in enumerate(content) if (part := _part(one, f"{path}[{index}]"))]


def _part(part: Fields, path: str) -> dict[str, Any] | None:
    kind = part["type"]
    if kind in ("input_text", "output_text", "text"):
        return text_part(part["text"])
    if kind == "refusal":
        return text_part(text_field(part, "refusal", path))
    if part.get("file_id"):
        raise _unsupported(f"{path} names a file on OpenAI's servers; send its data", f"{path}.file_id")
    if kind == "input_image":
        return image_part(text_field(part, "image_url", path), part.get("detail"))
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    if kind == "input_file":
        file = {name: part[name] for name in ("filename", "file_data") if part.get(name) is not None}
        if "file_data" in file:
            return {"type": "file", "file": file}
        raise _unsupported(f"{path} needs file_data: this model's server does not fetch files", f"{path}.file_data")
    raise _unsupported(f"{path} has a type that this model's server does not accept: {kind}", f"{path}.type")


def _add_text(body: dict[str, Any], text: Fields) -> None:
    form = text.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        schema = {name: value for name, value in form.items() if name != "type" and value is not None}
        body["response_format"] = output_format(schema)
    elif isinstance(form, dict) and form.get("type") == "json_object":
        body["response_format"] = {"type": "json_object"}
    if (verbosity := text.get("verbosity")) in ("low", "medium", "high"):
        body["verbosity"] = verbosity


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_api")
