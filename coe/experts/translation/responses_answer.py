"""Writes an answer of Chat Completions in OpenAI's Responses API: as events, and as the response that they describe.

The order of events and the shapes are those of the `openai` package's types (3.57). Reasoning becomes an item whose
summary is the whole text, since clients show summaries.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from coe.experts.api_formats import OWN_ITEM
from coe.experts.translation.chat_answer import CallDelta, Delta, json_object
from coe.experts.translation.tools import INPUT, ToolName, read_tools
from coe.usage import Usage

Event = dict[str, Any]
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


class ResponseBuilder:
    """Builds one response from the deltas of a chat answer. Every method returns the events that it causes."""

    def __init__(self, fields: Mapping[str, Any], *, model: str) -> None:
        self._names = read_tools(fields.get("tools")).names
        self._sequence = 0
        self._open: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._reason = ""
        sent = {name: fields[name] for name in (*_DEFAULTS, *_ECHOED) if fields.get(name) is not None}
        if isinstance(text := sent.get("text"), dict):
            sent["text"] = {"format": {"type": "text"}, **text}
        self.response: dict[str, Any] = {
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
        opening = {**self.response, "output": []}
        return [self._event(f"response.{kind}", response=opening) for kind in ("created", "in_progress")]

    def add(self, delta: Delta) -> list[Event]:
        """Raises ValueError for parts of a tool call that has ended."""
        events: list[Event] = []
        if delta.reasoning:
            events += self._switch("reasoning") + self._write(delta.reasoning)
        if delta.text:
            events += self._switch("output_text") + self._write(delta.text, delta.logprobs)
        if delta.refusal:
            events += self._switch("refusal") + self._write(delta.refusal)
        for annotation in delta.annotations:
            events += self._switch("output_text") + self._annotate(annotation)
        for call in delta.calls:
            events += self._add_call(call)
        self._reason = delta.finish_reason or self._reason
        return events

    def end(self, usage: Usage) -> list[Event]:
        events = self._close()
        if not self.response["output"]:
            events += self._switch("output_text") + self._close()
        reason = _INCOMPLETE.get(self._reason)
        self.response["status"] = "incomplete" if reason else "completed"
        if reason:
            self.response["incomplete_details"] = {"reason": reason}
            self.response["output"][-1]["status"] = "incomplete"
        else:
            self.response["completed_at"] = int(time.time())
        self.response["usage"] = _usage(usage)
        return [*events, self._event(f"response.{self.response['status']}", response=self.response)]

    def _add_call(self, call: CallDelta) -> list[Event]:
        events: list[Event] = []
        if (item := self._calls.get(call.number)) is None:
            name = self._names.get(call.name) or ToolName(call.name)
            item = self._calls[call.number] = _Item.of_call(name, call.id or f"call_{uuid.uuid4().hex}")
            events += self._close() + self._start(item)
        if item is not self._open:
            raise ValueError("tool calls out of order")
        return [*events, *(self._write(call.arguments) if call.arguments else ())]

    def _switch(self, kind: str) -> list[Event]:
        """Makes the open item one of this kind. A text and a refusal are parts of one message."""
        if self._open is not None and self._open.kind == kind:
            return []
        return [*self._close(), *self._start(_Item.of_kind(kind))]

    def _start(self, item: _Item) -> list[Event]:
        item.index = len(self.response["output"])
        self.response["output"].append(item.item)
        self._open = item
        opening = {name: [] if isinstance(value, list) else value for name, value in item.item.items()}
        events = [self._event("response.output_item.added", output_index=item.index, item=opening)]
        if item.part_event:
            events.append(self._item_event(item, f"{item.part_event}.added", part=item.part("")))
        return events

    def _write(self, text: str, logprobs: tuple[Mapping[str, Any], ...] = ()) -> list[Event]:
        assert self._open is not None
        item = self._open
        item.pieces.append(text)
        item.logprobs.extend(logprobs)
        if item.kind == "custom_tool_call":  # the input is inside JSON, which is complete at the end only
            return []
        extra = {"logprobs": list(logprobs)} if item.kind == "output_text" else {}
        return [self._item_event(item, f"{item.text_event}.delta", delta=text, **extra)]

    def _annotate(self, annotation: Mapping[str, Any]) -> list[Event]:
        assert self._open is not None
        item, index = self._open, len(self._open.annotations)
        item.annotations.append(annotation)
        fields = {"annotation_index": index, "annotation": annotation}
        return [self._item_event(item, "output_text.annotation.added", **fields)]

    def _close(self) -> list[Event]:
        if (item := self._open) is None:
            return []
        self._open, text = None, item.finish()
        events = []
        if item.kind == "custom_tool_call":
            events.append(self._item_event(item, f"{item.text_event}.delta", delta=text))
        events.append(self._item_event(item, f"{item.text_event}.done", **item.done_fields(text)))
        if item.part_event:
            events.append(self._item_event(item, f"{item.part_event}.done", part=item.part(text)))
        return [*events, self._event("response.output_item.done", output_index=item.index, item=item.item)]

    def _item_event(self, item: _Item, kind: str, **fields: Any) -> Event:
        place = {"item_id": item.item["id"], "output_index": item.index, **item.position}
        return self._event(f"response.{kind}", **place, **fields)

    def _event(self, kind: str, **fields: Any) -> Event:
        self._sequence += 1
        return {"type": kind, "sequence_number": self._sequence - 1, **fields}


_EVENTS = {
    "reasoning": ("reasoning_summary_text", "reasoning_summary_part", {"summary_index": 0}),
    "output_text": ("output_text", "content_part", {"content_index": 0}),
    "refusal": ("refusal", "content_part", {"content_index": 0}),
    "function_call": ("function_call_arguments", "", {}),
    "custom_tool_call": ("custom_tool_call_input", "", {}),
}
"""Names of the events of the text and of the part, and the fields of both, of each kind of item."""


class _Item:
    """One item of the output. `item` is its JSON object, which `finish` completes."""

    def __init__(self, kind: str, fields: Mapping[str, Any]) -> None:
        self.kind = kind
        self.text_event, self.part_event, self.position = _EVENTS[kind]
        self.index = 0
        self.pieces: list[str] = []
        self.logprobs: list[Mapping[str, Any]] = []
        self.annotations: list[Mapping[str, Any]] = []
        self.item: dict[str, Any] = {**fields, "status": "in_progress"}

    @classmethod
    def of_kind(cls, kind: str) -> _Item:
        if kind == "reasoning":
            return cls(kind, {"id": _item_id("rs"), "type": kind, "summary": []})
        return cls(kind, {"id": _item_id("msg"), "type": "message", "role": "assistant", "content": []})

    @classmethod
    def of_call(cls, name: ToolName, call_id: str) -> _Item:
        kind, prefix, content = (
            ("custom_tool_call", "ctc", INPUT) if name.custom else ("function_call", "fc", "arguments")
        )
        item = {"id": _item_id(prefix), "type": kind, "call_id": call_id, "name": name.name, content: ""}
        return cls(kind, item | ({"namespace": name.namespace} if name.namespace else {}))

    def finish(self) -> str:
        """Completes the item and returns its text."""
        text = "".join(self.pieces)
        self.item["status"] = "completed"
        if self.kind == "function_call":
            self.item["arguments"] = text = text or "{}"
        elif self.kind == "custom_tool_call":
            found = json_object(text)  # a model that writes no JSON has written the input itself
            self.item[INPUT] = text = found[INPUT] if found and isinstance(found.get(INPUT), str) else text
        else:
            self.item["summary" if self.kind == "reasoning" else "content"].append(self.part(text))
        return text

    def part(self, text: str) -> dict[str, Any]:
        """Returns the part of a message or summary."""
        if self.kind == "output_text":
            lists = {"annotations": list(self.annotations), "logprobs": list(self.logprobs)}
            return {"type": "output_text", "text": text, **lists}
        return (
            {"type": "refusal", "refusal": text} if self.kind == "refusal" else {"type": "summary_text", "text": text}
        )

    def done_fields(self, text: str) -> dict[str, Any]:
        """Returns the fields of the event that ends the text."""
        if self.kind == "function_call":
            return {"arguments": text, "name": self.item["name"]}
        if self.kind == "output_text":
            return {"text": text, "logprobs": list(self.logprobs)}
        return {{"refusal": "refusal", "custom_tool_call": INPUT}.get(self.kind, "text"): text}


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


def _item_id(prefix: str) -> str:
    """The id of an item. No other server gets it (`without_own_ids`)."""
    return f"{prefix}{OWN_ITEM}{uuid.uuid4().hex}"
