"""Reads answers of Chat Completions and builds answers in other APIs from them.

A `Delta` is what one chunk of a stream, or a non-streaming answer, adds. `AnswerBuilder` consumes deltas, so that
streams and non-streaming answers share one translation. Servers deviate from OpenAI's form: reasoning has several
names, calls lack their index, and content may be parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from coe import json_text

Event = dict[str, Any]
MAX_CALLS = 1024
"""Tool calls of one answer."""
_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""DeepSeek, litellm and older vLLM; newer vLLM, Ollama and OpenRouter."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of a tool call. The first part has the name; `arguments` is a piece of the JSON."""

    number: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of an answer."""

    reasoning: str = ""
    text: str = ""
    refusal: str = ""
    calls: tuple[CallDelta, ...] = ()
    finish_reason: str = ""


class ChatReader:
    """Reads one answer. Raises ValueError for anything but a Chat Completions response."""

    def __init__(self) -> None:
        self._calls = 0

    def whole(self, answer: Mapping[str, Any]) -> Delta:
        """Returns the delta of a non-streaming answer."""
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError("chat without a choice")
        return self._delta(choices[0], "message")

    def deltas(self, events: bytes) -> Iterator[Delta]:
        """Yields the deltas of complete events."""
        for line in events.splitlines():
            if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
                continue
            chunk = json_text.loads(data)
            choices = chunk.get("choices") if isinstance(chunk, dict) else None
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                yield self._delta(choices[0], "delta")

    def _delta(self, choice: Mapping[str, Any], field: str) -> Delta:
        message = choice.get(field) or {}
        if not isinstance(message, dict):
            raise ValueError(f"a {field} that is not an object")
        return Delta(
            reasoning=next((text for name in _REASONING_FIELDS if (text := _text(message.get(name)))), ""),
            text=_text(message.get("content")),
            refusal=_text(message.get("refusal")),
            calls=tuple(map(self._call, _objects(message.get("tool_calls")))),
            finish_reason=_text(choice.get("finish_reason")),
        )

    def _call(self, call: Mapping[str, Any]) -> CallDelta:
        """Return one piece of a tool call. Without an `index`, a piece with a name starts the next call."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        index, name = call.get("index"), _text(function.get("name"))
        number = index if type(index) is int else self._calls if name else self._calls - 1
        if not 0 <= number <= min(self._calls, MAX_CALLS - 1):
            raise ValueError("tool calls out of order")
        self._calls = max(self._calls, number + 1)
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json_text.dumps_with_nan(arguments).decode()
        return CallDelta(number, _text(call.get("id")), name, _text(arguments))


class AnswerBuilder(ABC):
    """Builds one answer, item by item, from the deltas of a chat answer. `answer` is the object that a client without
    a stream gets. Every method returns the events that it causes."""

    kinds: ClassVar[Mapping[str, str]]
    """The kinds of item that hold the texts of a delta, by the name of its field."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] = {}
        self.finish_reason = ""
        self.refused = False
        self.calls = 0
        """Tool calls so far."""
        self._open: str | int | None = None
        """The kind of the open item, or the number of its call."""

    def add(self, delta: Delta) -> list[Event]:
        """Raises ValueError for parts of a tool call that has ended: items follow each other."""
        events: list[Event] = []
        for field, kind in self.kinds.items():
            if text := getattr(delta, field):
                if self._open != kind:
                    events += self.close_open() + self.open_text(kind)
                    self._open = kind
                events += self.write(text)
        for call in delta.calls:
            if self._open != call.number:
                if call.number < self.calls:
                    raise ValueError("tool calls out of order")
                events += self.close_open() + self.open_call(call)
                self._open, self.calls = call.number, call.number + 1
            if call.arguments:
                events += self.write(call.arguments)
        self.refused |= bool(delta.refusal)
        self.finish_reason = delta.finish_reason or self.finish_reason
        return events

    def close_open(self) -> list[Event]:
        """Completes the open item, if there is one."""
        was_open, self._open = self._open is not None, None
        return self.close() if was_open else []

    @abstractmethod
    def open_text(self, kind: str) -> list[Event]:
        """Begins an item for a text."""

    @abstractmethod
    def open_call(self, call: CallDelta) -> list[Event]:
        """Begins an item for a tool call."""

    @abstractmethod
    def write(self, text: str) -> list[Event]:
        """Adds text to the open item."""

    @abstractmethod
    def close(self) -> list[Event]:
        """Completes the open item."""


def _text(value: Any) -> str:
    """The text of a field that may be absent, or a list in which only some parts are text."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in _objects(value))
    return value if isinstance(value, str) else ""


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
