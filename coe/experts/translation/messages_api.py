"""Anthropic's Messages API over Chat Completions: its requests, and its answers as events or whole.

Tools that Anthropic's servers run themselves, and the blocks that record their use, are left out and reported by
`dropped_parts`, and so is earlier thinking. Blocks that chat cannot carry and the answer depends on are refused with
InvalidRequest.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from coe import json_text
from coe.errors import InvalidRequest
from coe.experts.translation.chat import (
    PASSED_FIELDS,
    AnswerBuilder,
    CallDelta,
    Conversation,
    Event,
    add_effort,
    effort_of_budget,
    image_part,
    output_format,
    text_field,
    text_part,
)
from coe.usage import Usage

Fields = Mapping[str, Any]
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THINKING = ("thinking", "redacted_thinking")


def chat_fields(fields: Fields) -> dict[str, Any]:
    """Returns the body for chat. Raises InvalidRequest that names the field."""
    conversation = Conversation()
    if fields.get("system"):
        _add_message(conversation, {"role": "system", "content": fields["system"]}, "system")
    for index, message in enumerate(fields["messages"]):
        _add_message(conversation, message, f"messages[{index}].content")
    body: dict[str, Any] = {"messages": conversation.messages, "stream": bool(fields.get("stream"))}
    body |= {name: fields[name] for name in (*PASSED_FIELDS, "max_tokens") if fields.get(name) is not None}
    if fields.get("stop_sequences"):
        body["stop"] = fields["stop_sequences"]
    _add_tools(body, fields)
    config, thinking = fields.get("output_config") or {}, fields.get("thinking") or {}
    if (effort := config.get("effort")) is not None and thinking.get("type") != "disabled":
        add_effort(body, effort, "output_config.effort")
    elif thinking.get("type") == "enabled":
        body["reasoning_effort"] = effort_of_budget(thinking.get("budget_tokens"))
    form = config.get("format") or fields.get("output_format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        body["response_format"] = output_format({"schema": form.get("schema"), "strict": True})
    return body


def dropped_parts(fields: Fields) -> tuple[str, ...]:
    """Returns the types of the tools, blocks and fields that `chat_fields` leaves out."""
    tools = [str(tool.get("type")) for tool in fields.get("tools") or () if not _is_function(tool)]
    contents = [message.get("content") for message in fields.get("messages") or ()]
    blocks = [block for content in contents if isinstance(content, list) for block in content]
    kinds = [kind for block in blocks if _is_server_block(kind := str(block.get("type")))]
    return (*tools, *kinds, *(name for name in ("mcp_servers", "container") if fields.get(name)))


def _add_message(conversation: Conversation, message: Fields, path: str) -> None:
    """Adds one message: tool results first, as chat requires, then what is left."""
    content, parts = message.get("content"), []
    if isinstance(content, str) or content is None:
        content = [text_part(content or "")]
    for index, block in enumerate(content):
        where, kind = f"{path}[{index}]", block.get("type")
        if kind == "tool_result":
            result = _parts(block.get("content"), f"{where}.content")
            conversation.add_result(text_field(block, "tool_use_id", where), result)
        elif kind not in ("tool_use", *_THINKING) and not _is_server_block(str(kind)):
            parts.append(_part(block, where))
    if parts:
        conversation.add(message["role"], parts)
    for index, block in enumerate(content):
        if block.get("type") == "tool_use":
            where, arguments = f"{path}[{index}]", json_text.dumps(block.get("input") or {}).decode()
            conversation.add_call(text_field(block, "id", where), text_field(block, "name", where), arguments)


def _parts(content: Any, path: str) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return [text_part(content or "")]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise InvalidRequest(f"{path} must be text or a list of blocks", param=path)
    kept = [(index, block) for index, block in enumerate(content) if block.get("type") != "tool_reference"]
    return [_part(block, f"{path}[{index}]") for index, block in kept]


def _part(block: Fields, where: str) -> dict[str, Any]:
    kind, source = block.get("type"), block.get("source")
    source = source if isinstance(source, dict) else {}
    form, place = source.get("type"), f"{where}.source"
    if kind == "text":
        return text_part(text_field(block, "text", where))
    if kind == "document" and form == "text":
        return text_part(text_field(source, "data", place))
    if kind == "image" and form == "url":
        return image_part(text_field(source, "url", place))
    if kind in ("image", "document") and form == "base64":
        url = f"data:{source.get('media_type')};base64,{text_field(source, 'data', place)}"
        if kind == "image":
            return image_part(url)
        return {"type": "file", "file": {"filename": block.get("title") or "document.pdf", "file_data": url}}
    message = f"{where} is of a type that this model's server does not accept: {kind} {form or ''}".strip()
    param = f"{place}.type" if kind == "document" else f"{where}.type"
    raise InvalidRequest(message, param=param, code="unsupported_api")


def _add_tools(body: dict[str, Any], fields: Fields) -> None:
    functions = [_function(tool) for tool in fields.get("tools") or () if _is_function(tool)]
    if not functions:
        return
    body["tools"], choice = functions, fields.get("tool_choice") or {}
    kind, names = choice.get("type"), [one["function"]["name"] for one in functions]
    if kind in _CHOICES:
        body["tool_choice"] = _CHOICES[kind]
    elif kind == "tool":
        if choice.get("name") not in names:
            message = f"tool_choice forces a tool that this model cannot call: {choice.get('name')}"
            raise InvalidRequest(message, param="tool_choice", code="unsupported_api")
        body["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    if choice.get("disable_parallel_tool_use"):
        body["parallel_tool_calls"] = False


def _function(tool: Fields) -> dict[str, Any]:
    function = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}


def _is_function(tool: Fields) -> bool:
    """True if the client runs a tool and declares its input."""
    return isinstance(tool.get("input_schema"), dict) and isinstance(tool.get("name"), str)


def _is_server_block(kind: str) -> bool:
    """True if a block records the use of a tool that Anthropic's servers run."""
    return kind in ("server_tool_use", "mcp_tool_use", "container_upload") or (
        kind.endswith("_tool_result") and kind != "tool_result"
    )


_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"} | dict.fromkeys(
    ("tool_calls", "function_call"), "tool_use"
)
_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""The type and the field of the delta of each kind of block."""


class MessageBuilder(AnswerBuilder):
    """Builds one message."""

    kinds: ClassVar[Mapping[str, str]] = {"reasoning": "thinking", "text": "text", "refusal": "text"}

    def __init__(self, *, model: str) -> None:
        super().__init__()
        self._pieces: list[str] = []
        self._block: dict[str, Any] = {}
        self.answer = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }

    def begin(self) -> list[Event]:
        return [{"type": "message_start", "message": {**self.answer, "content": []}}]

    def open_text(self, kind: str) -> list[Event]:
        return self._start({"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {}))

    def open_call(self, call: CallDelta) -> list[Event]:
        call_id = call.id or f"toolu_{uuid.uuid4().hex}"
        return self._start({"type": "tool_use", "id": call_id, "name": call.name, "input": {}})

    def _start(self, block: dict[str, Any]) -> list[Event]:
        self.answer["content"].append(block)
        self._block, self._pieces = block, []
        return [self._event("content_block_start", content_block=dict(block))]

    def write(self, text: str) -> list[Event]:
        self._pieces.append(text)
        kind, field = _DELTAS[self._block["type"]]
        return [self._event("content_block_delta", delta={"type": kind, field: text})]

    def close(self) -> list[Event]:
        block, text = self._block, "".join(self._pieces)
        if block["type"] == "tool_use":
            try:
                found = json_text.loads((text or "{}").encode("utf-8", "surrogatepass"))
            except ValueError:
                found = None
            block["input"] = found if isinstance(found, dict) else {"INVALID_JSON": text}  # as Anthropic's servers
        else:
            block[block["type"]] = text
        return [self._event("content_block_stop")]

    def end(self, usage: Usage) -> list[Event]:
        events = self.close_open()
        reason = _STOP_REASONS.get(self.finish_reason, "end_turn")
        if self.calls and reason == "end_turn":  # some servers report an ordinary end
            reason = "tool_use"
        elif self.refused:
            reason = "refusal"
        cached = usage.cached_tokens or 0  # this API counts the cached part of a prompt separately
        counts = {
            "input_tokens": max(0, (usage.input_tokens or 0) - cached),
            "output_tokens": usage.output_tokens or 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
        }
        self.answer |= {"stop_reason": reason, "usage": counts}
        stop = {"stop_reason": reason, "stop_sequence": None}
        return [*events, {"type": "message_delta", "delta": stop, "usage": counts}, {"type": "message_stop"}]

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "index": len(self.answer["content"]) - 1, **fields}
