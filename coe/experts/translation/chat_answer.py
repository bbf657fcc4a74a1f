"""Reads answers of Chat Completions: a `Delta` is what one chunk of a stream, or a whole plain answer, adds.

Both builders of translated answers consume deltas, so that a plain answer and a stream are translated by the same code.
Servers deviate from OpenAI's form: reasoning has several names, calls lack their index, and content may be parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coe.experts.http import sse

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


class ChatReader:
    """Reads one answer. Raises ValueError for what is no chat answer."""

    def __init__(self) -> None:
        self._calls = 0

    def whole(self, answer: Mapping[str, Any]) -> Delta:
        """Returns the delta of a plain answer."""
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError("chat without a choice")
        return self._delta(choices[0], "message")

    def deltas(self, events: bytes) -> Iterator[Delta]:
        """Yields the deltas of complete events."""
        for line in events.splitlines():
            if not line.startswith(b"data:") or (data := line[5:].strip()) == b"[DONE]":
                continue
            chunk = sse.loads(data)
            choices = chunk.get("choices") if isinstance(chunk, dict) else None
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                yield self._delta(choices[0], "delta")

    def _delta(self, choice: Mapping[str, Any], field: str) -> Delta:
        message = choice.get(field) or {}
        if not isinstance(message, dict):
            raise ValueError(f"a {field} that is no object")
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
        """A call without an index begins with its name; what follows belongs to it."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        index, name = call.get("index"), _text(function.get("name"))
        number = index if type(index) is int else self._calls if name else self._calls - 1
        if not 0 <= number <= min(self._calls, MAX_CALLS - 1):
            raise ValueError("tool calls out of order")
        self._calls = max(self._calls, number + 1)
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = sse.dumps(arguments).decode()
        return CallDelta(number, _text(call.get("id")), name, _text(arguments))


def _text(value: Any) -> str:
    """The text of a field that may be absent, or parts of which some are texts."""
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
