"""Writes an answer of Chat Completions in Anthropic's Messages API: as events, and as the message they describe."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from coe.experts.translation.chat_answer import CallDelta, Delta, json_object
from coe.usage import Usage

Event = dict[str, Any]
_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"} | dict.fromkeys(
    ("tool_calls", "function_call"), "tool_use"
)
_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}
"""The type and the field of the delta of each kind of block."""


class MessageBuilder:
    """Builds one message from the deltas of a chat answer. Every method returns the events that it causes."""

    def __init__(self, fields: Mapping[str, Any], *, model: str) -> None:
        self._stop_sequences = fields.get("stop_sequences") or ()
        self._pieces: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._open: dict[str, Any] | None = None
        self._reason = self._stop_sequence = ""
        self._refused = False
        self.message: dict[str, Any] = {
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
        return [{"type": "message_start", "message": {**self.message, "content": []}}]

    def add(self, delta: Delta) -> list[Event]:
        """Raises ValueError for parts of a tool call that has ended."""
        events: list[Event] = []
        if delta.reasoning:
            events += self._switch("thinking") + self._write(delta.reasoning)
        if delta.signature:
            events += self._switch("thinking") + self._sign(delta.signature)
        for data in delta.redacted:
            events += self._close() + self._start({"type": "redacted_thinking", "data": data}) + self._close()
        for text in filter(None, (delta.text, delta.refusal)):
            events += self._switch("text") + self._write(text)
        for call in delta.calls:
            events += self._add_call(call)
        self._refused = self._refused or bool(delta.refusal)
        self._reason = delta.finish_reason or self._reason
        self._stop_sequence = delta.stop_sequence or self._stop_sequence
        return events

    def end(self, usage: Usage) -> list[Event]:
        events = self._close()
        reason = _STOP_REASONS.get(self._reason, "end_turn")
        if self._calls and reason == "end_turn":  # some servers report an ordinary end
            reason = "tool_use"
        elif self._refused:
            reason = "refusal"
        elif self._stop_sequence in self._stop_sequences and reason == "end_turn":
            reason, self.message["stop_sequence"] = "stop_sequence", self._stop_sequence
        self.message |= {"stop_reason": reason, "usage": _usage(usage)}
        stop = {"stop_reason": reason, "stop_sequence": self.message["stop_sequence"]}
        return [
            *events,
            {"type": "message_delta", "delta": stop, "usage": self.message["usage"]},
            {"type": "message_stop"},
        ]

    def _add_call(self, call: CallDelta) -> list[Event]:
        events: list[Event] = []
        if (block := self._calls.get(call.number)) is None:
            call_id = call.id or f"toolu_{uuid.uuid4().hex}"
            block = self._calls[call.number] = {"type": "tool_use", "id": call_id, "name": call.name, "input": {}}
            events += self._close() + self._start(block)
        if block is not self._open:
            raise ValueError("tool calls out of order")
        return [*events, *(self._write(call.arguments) if call.arguments else ())]

    def _switch(self, kind: str) -> list[Event]:
        if self._open is not None and self._open["type"] == kind:
            return []
        block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
        return [*self._close(), *self._start(block)]

    def _start(self, block: dict[str, Any]) -> list[Event]:
        self.message["content"].append(block)
        self._open, self._pieces = block, []
        return [self._event("content_block_start", content_block=dict(block))]

    def _write(self, text: str) -> list[Event]:
        assert self._open is not None
        self._pieces.append(text)
        kind, field = _DELTAS[self._open["type"]]
        return [self._event("content_block_delta", delta={"type": kind, field: text})]

    def _sign(self, signature: str) -> list[Event]:
        assert self._open is not None
        self._open["signature"] += signature
        return [self._event("content_block_delta", delta={"type": "signature_delta", "signature": signature})]

    def _close(self) -> list[Event]:
        if (block := self._open) is None:
            return []
        event = self._event("content_block_stop")
        self._open, text = None, "".join(self._pieces)
        if block["type"] == "tool_use":
            found = json_object(text or "{}")
            block["input"] = {"INVALID_JSON": text} if found is None else found  # the name of Anthropic's servers
        elif block["type"] in _DELTAS:
            block[block["type"]] = text
        return [event]

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "index": len(self.message["content"]) - 1, **fields}


def _usage(usage: Usage) -> dict[str, Any]:
    """The counts in this API's form, which counts the cached part of a prompt separately."""
    cached = usage.cached_tokens or 0
    counts = {"input_tokens": max(0, (usage.input_tokens or 0) - cached), "output_tokens": usage.output_tokens or 0}
    return {**counts, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}
