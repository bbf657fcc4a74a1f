"""Writes an answer of Chat Completions in Anthropic's Messages API: as events, and as the message they describe."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

from coe import json_text
from coe.experts.translation.chat_answer import AnswerBuilder, CallDelta, Event
from coe.usage import Usage

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
