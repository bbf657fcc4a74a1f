"""OpenAI's Responses API over Chat Completions: its requests, and its answers as events or whole.

What has no counterpart in chat but only adds to the request is left out and reported by `dropped_parts`: tools that
OpenAI's servers run themselves, and the items that record their use. What the answer would be wrong without is refused
with InvalidRequest: state on a server, files by id, a forced tool that does not exist.

The order of events and the shapes are those of the `openai` package's types (3.57). Reasoning becomes an item whose
summary is the whole text, since clients show summaries.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from coe.errors import InvalidRequest
from coe.experts.translation.chat import (
    PASSED_FIELDS,
    AnswerBuilder,
    CallDelta,
    Conversation,
    Event,
    add_effort,
    chat_choice,
    chat_name,
    image_part,
    output_format,
    read_tools,
    text_field,
    text_part,
)
from coe.usage import Usage

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


_DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(("instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "user")),
    **dict.fromkeys(("parallel_tool_calls", "store"), True),
    **dict.fromkeys(("temperature", "top_p"), 1.0),
    "background": False,
    "metadata": {},
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "truncation": "disabled",
}
"""Values that the API returns for fields that the client leaves out."""
_ECHOED = ("prompt_cache_key", "safety_identifier", "conversation", "prompt")
"""Fields that are returned only if they were sent."""
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of item: the type and id of the item, the names of its events, and where its text is.

    `field` holds the text in the last event of the text, and in the item itself or in a part of it. `part` is the type
    of that part, `parts` the field of the item that lists it, both empty for an item without parts.
    """

    type: str
    prefix: str
    text_event: str
    field: str
    part_event: str = ""
    part: str = ""
    parts: str = ""


_KINDS: Mapping[str, _Kind] = {
    "reasoning": _Kind(
        "reasoning", "rs", "reasoning_summary_text", "text", "reasoning_summary_part", "summary_text", "summary"
    ),
    "output_text": _Kind("message", "msg", "output_text", "text", "content_part", "output_text", "content"),
    "refusal": _Kind("message", "msg", "refusal", "refusal", "content_part", "refusal", "content"),
    "function_call": _Kind("function_call", "fc", "function_call_arguments", "arguments"),
}


class ResponseBuilder(AnswerBuilder):
    """Builds one response to a request with these `fields`."""

    kinds: ClassVar[Mapping[str, str]] = {"reasoning": "reasoning", "text": "output_text", "refusal": "refusal"}

    def __init__(self, fields: Mapping[str, Any], *, model: str) -> None:
        super().__init__()
        self._names = read_tools(fields.get("tools")).names
        self._sequence = 0
        self._kind = _KINDS["output_text"]
        self._item: dict[str, Any] = {}
        self._pieces: list[str] = []
        sent = {name: fields[name] for name in (*_DEFAULTS, *_ECHOED) if fields.get(name) is not None}
        if isinstance(text := sent.get("text"), dict):
            sent["text"] = {"format": {"type": "text"}, **text}
        self.answer = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": model,
            "output": [],
            "usage": None,
            **_DEFAULTS,
            **sent,
        }

    def begin(self) -> list[Event]:
        opening = {**self.answer, "output": []}
        return [self._event(f"response.{kind}", response=opening) for kind in ("created", "in_progress")]

    def open_text(self, kind: str) -> list[Event]:
        parts = _KINDS[kind].parts
        return self._start(kind, {"role": "assistant", parts: []} if parts == "content" else {parts: []})

    def open_call(self, call: CallDelta) -> list[Event]:
        namespace, name = self._names.get(call.name) or ("", call.name)
        fields = {"call_id": call.id or f"call_{uuid.uuid4().hex}", "name": name, "arguments": ""}
        return self._start("function_call", fields | ({"namespace": namespace} if namespace else {}))

    def _start(self, kind: str, fields: Mapping[str, Any]) -> list[Event]:
        self._kind, self._pieces = _KINDS[kind], []
        item_id = f"{self._kind.prefix}_{uuid.uuid4().hex}"
        self._item = {"id": item_id, "type": self._kind.type, **fields, "status": "in_progress"}
        self.answer["output"].append(self._item)
        opening = {name: [] if isinstance(value, list) else value for name, value in self._item.items()}
        events = [self._event("response.output_item.added", output_index=self._index, item=opening)]
        if self._kind.part:
            events.append(self._item_event(f"{self._kind.part_event}.added", part=self._part("")))
        return events

    def write(self, text: str) -> list[Event]:
        self._pieces.append(text)
        return [self._item_event(f"{self._kind.text_event}.delta", delta=text, **self._logprobs)]

    def close(self) -> list[Event]:
        kind, item, text = self._kind, self._item, "".join(self._pieces)
        item["status"] = "completed"
        if not kind.part:
            item["arguments"] = text = text or "{}"
            done = [self._item_event(f"{kind.text_event}.done", arguments=text, name=item["name"])]
        else:
            part = self._part(text)
            item[kind.parts].append(part)
            done = [
                self._item_event(f"{kind.text_event}.done", **{kind.field: text}, **self._logprobs),
                self._item_event(f"{kind.part_event}.done", part=part),
            ]
        return [*done, self._event("response.output_item.done", output_index=self._index, item=item)]

    def end(self, usage: Usage) -> list[Event]:
        events = self.close_open()
        if not self.answer["output"]:
            events += self.open_text("output_text") + self.close()
        reason = _INCOMPLETE.get(self.finish_reason)
        self.answer["status"] = "incomplete" if reason else "completed"
        if reason:
            self.answer["incomplete_details"] = {"reason": reason}
            self.answer["output"][-1]["status"] = "incomplete"
        else:
            self.answer["completed_at"] = int(time.time())
        self.answer["usage"] = _usage(usage)
        return [*events, self._event(f"response.{self.answer['status']}", response=self.answer)]

    @property
    def _index(self) -> int:
        return len(self.answer["output"]) - 1

    @property
    def _logprobs(self) -> dict[str, Any]:
        """The field that the events of an output text must have; chat's are not translated."""
        return {"logprobs": []} if self._kind.part == "output_text" else {}

    def _part(self, text: str) -> dict[str, Any]:
        lists: dict[str, Any] = {"annotations": [], "logprobs": []} if self._kind.part == "output_text" else {}
        return {"type": self._kind.part, self._kind.field: text, **lists}

    def _item_event(self, event: str, **fields: Any) -> Event:
        position = {f"{self._kind.parts}_index": 0} if self._kind.parts else {}
        return self._event(
            f"response.{event}", item_id=self._item["id"], output_index=self._index, **position, **fields
        )

    def _event(self, kind: str, **fields: Any) -> Event:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}


def _usage(usage: Usage) -> dict[str, Any] | None:
    """The counts in this API's form; None if the server reported none."""
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    entered, written = usage.input_tokens or 0, usage.output_tokens or 0
    return {
        "input_tokens": entered,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": entered + written,
    }
