"""Assembles a non-streaming response from the server's stream.

`transformers serve` finishes a non-streaming request even if its client has left, and requests wait in one queue:
abandoned ones would block it for minutes. It stops a stream whose connection is closed. So `HttpExpert` requests a
stream from it for non-streaming requests too. The response has the server's usual non-streaming format.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from coe import json_text
from coe.core import Chunks
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer
from coe.experts.http import sse
from coe.experts.http.replies import MAX_ANSWER_BYTES, SingleChunk, StreamedReply

_TEXTS = ("content", "reasoning_content", "refusal")
"""Fields of a delta that hold pieces of a text."""


class AssembledReply:
    """A non-streaming reply from `stream`, a reply in Chat Completions or Completions. `begin` reads all of it."""

    media_type = "application/json"

    def __init__(self, stream: StreamedReply, *, errors: ErrorMapping, held: HeldAnswer) -> None:
        self._stream = stream
        self._errors = errors
        self._held = held
        self._body = b""
        self.usage = stream.usage

    async def begin(self) -> None:
        try:
            await self._read()
        except BaseException:
            self._held.resize(0)
            raise

    async def _read(self) -> None:
        await self._stream.begin()
        answer, size = Assembly(), 0
        try:
            async with aclosing(self._stream.chunks()) as chunks:
                async for events in chunks:
                    size += len(events)
                    if size > MAX_ANSWER_BYTES:
                        raise self._errors.invalid_response("an answer longer than the limit of 64 MiB")
                    self._held.resize(size)
                    answer.add(events)
            self._body = json_text.dumps_with_nan(answer.plain())
            self._held.resize(len(self._body))
        except (AttributeError, LookupError, TypeError, ValueError):
            raise self._errors.invalid_response("events that do not belong to this API") from None

    def chunks(self) -> Chunks:
        body, self._body = self._body, b""
        return SingleChunk(body)

    async def aclose(self) -> None:
        self._held.resize(0)
        await self._stream.aclose()


class Assembly:
    """Joins the chunks of a stream into one answer."""

    def __init__(self) -> None:
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, events: bytes) -> None:
        """Add complete events. Raises ValueError, TypeError or LookupError if they are not chunks of an answer."""
        for chunk in sse.chunks_of(events):
            self._answer |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
            for piece in chunk.get("choices") or ():
                self._add_choice(piece)

    def _add_choice(self, piece: dict[str, Any]) -> None:
        index = piece.get("index", 0)
        choice = self._choices.setdefault(index, {"index": index, "finish_reason": None})
        if "text" in piece:
            choice["text"] = choice.get("text", "") + (piece["text"] or "")
        if (delta := piece.get("delta")) is not None:
            _add_delta(choice.setdefault("message", {"role": "assistant", "content": ""}), delta)
        choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]

    def plain(self) -> dict[str, Any]:
        """Return the answer. Raises LookupError if there was no choice."""
        answer = {name: value for name, value in self._answer.items() if value != ""}  # transformers: an empty name
        kind = str(answer.pop("object", ""))
        choices = [self._choices[index] for index in sorted(self._choices)]
        if not choices:
            raise LookupError("no choice")
        return {**answer, "object": kind.removesuffix(".chunk"), "choices": choices}


def _add_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for piece in value or ():
                _add_call(message.setdefault("tool_calls", []), piece)
        elif name in _TEXTS:
            if value:
                message[name] = message.get(name, "") + value
        elif value is not None:
            message[name] = value


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call, whose arguments may arrive in several."""
    index = piece["index"]
    if index == len(calls):
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], piece.get("function") or {}
    call["id"] = piece.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""
