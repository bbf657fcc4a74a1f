"""Reads answers of Chat Completions: a `Delta` is what one chunk of a stream, or a non-streaming answer, adds.

Both builders of translated answers consume deltas, so that streams and non-streaming answers share one translation.
Servers deviate from OpenAI's form: reasoning has several names, calls lack their index, and content may be parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from coe import json_text

MAX_CALLS = 1024
"""Tool calls of one answer."""
OBJECT_BYTES = 2**8
"""Approximate bytes of memory of a short text or a small object."""
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
    """A part of an answer. `signature` and `redacted` are those of Anthropic's thinking blocks, as litellm returns
    them. `logprobs` and `annotations` are in the form of chat, which Responses shares."""

    reasoning: str = ""
    text: str = ""
    refusal: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    annotations: tuple[Mapping[str, Any], ...] = ()
    signature: str = ""
    redacted: tuple[str, ...] = ()
    finish_reason: str = ""
    stop_sequence: str = ""

    @property
    def size(self) -> int:
        """Approximate bytes of memory that it takes in an answer."""
        written = sum(len(call.arguments) for call in self.calls) + sum(map(len, self.redacted))
        objects = len(self.calls) + len(self.redacted) + len(self.annotations) + len(self.logprobs)
        texts = len(self.reasoning) + len(self.text) + len(self.refusal) + len(self.signature)
        return texts + written + OBJECT_BYTES * (1 + objects)


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
        reasoning = next((text for name in _REASONING_FIELDS if (text := _text(message.get(name)))), "")
        blocks = _objects(message.get("thinking_blocks"))
        return Delta(
            reasoning=reasoning,
            text=_text(message.get("content")),
            refusal=_text(message.get("refusal")),
            calls=tuple(map(self._call, _objects(message.get("tool_calls")))),
            logprobs=_logprobs(choice.get("logprobs")),
            annotations=tuple(filter(None, map(_annotation, _objects(message.get("annotations"))))),
            signature="".join(_text(block.get("signature")) for block in blocks),
            redacted=tuple(_text(block.get("data")) for block in blocks if block.get("type") == "redacted_thinking"),
            finish_reason=_text(choice.get("finish_reason")),
            stop_sequence=_text(choice.get("stop_reason")),  # vLLM's name
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


class CallOrder:
    """Reorders the deltas of a stream so that the pieces of a tool call follow each other.

    Chat servers may interleave the pieces of parallel calls, or send text between them. The Responses and Messages APIs
    send one item after the other. The first call passes; what else comes after it waits for the end of the stream, as
    clients run calls only then. The limits of the answer bound what waits.
    """

    def __init__(self) -> None:
        self._open: int | None = None
        """The number of the call whose pieces pass."""
        self._waiting: dict[object, list[Delta]] = {}
        """The pieces of each other call, and the texts between."""

    def add(self, delta: Delta) -> list[Delta]:
        """Returns the deltas that can be written now."""
        ordered, text = [], replace(delta, calls=())
        if self._open is None:
            ordered.append(text)
        elif text != _NOTHING:
            self._waiting[object()] = [text]
        for call in delta.calls:
            if self._open is None:
                self._open = call.number
            same_call = ordered if call.number == self._open else self._waiting.setdefault(call.number, [])
            same_call.append(Delta(calls=(call,)))
        return ordered

    def end(self) -> list[Delta]:
        """Returns the deltas that still wait at the end of the stream."""
        return [delta for deltas in self._waiting.values() for delta in deltas]


_NOTHING = Delta()


def _text(value: Any) -> str:
    """The text of a field that may be absent, or a list in which only some parts are text."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in _objects(value))
    return value if isinstance(value, str) else ""


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _logprobs(value: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple(_objects(value.get("content"))) if isinstance(value, dict) else ()


def _annotation(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """Chat nests the fields of a citation under its type."""
    kind = value.get("type")
    nested = value.get(kind) if isinstance(kind, str) else None
    return {"type": kind, **nested} if isinstance(nested, dict) else None


def json_object(text: str) -> dict[str, Any] | None:
    """The arguments of a call as an object; None if they are none."""
    try:
        found = json_text.loads(text.encode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
