"""Assembles a non-streaming response from the server's stream.

`transformers serve` finishes a non-streaming request even if its client has left, and requests wait in one queue:
abandoned ones would block it for minutes. It stops a stream whose connection is closed. So `HttpExpert` requests a
stream from it for non-streaming requests too. The response has the server's usual non-streaming format.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from coe import json_text
from coe.experts.error_mapping import ErrorMapping
from coe.experts.held_answer import HeldAnswer, WholeReply
from coe.experts.http import sse
from coe.experts.http.replies import MAX_ANSWER_BYTES, StreamedReply

_TEXTS = ("content", "reasoning_content", "refusal")
"""Fields of a delta that hold pieces of a text."""


async def assemble(stream: StreamedReply, *, errors: ErrorMapping, held: HeldAnswer) -> WholeReply:
    """Reads a stream of Chat Completions or Completions to its end. Raises what it raises, and ExpertInvalidResponse
    for events of another API."""
    answer: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    size = 0
    await stream.begin()
    try:
        async with aclosing(stream.chunks()) as chunks:
            async for events in chunks:
                size += len(events)
                if size > MAX_ANSWER_BYTES:
                    raise errors.invalid_response("an answer longer than the limit of 64 MiB")
                held.resize(size)
                for chunk in sse.chunks_of(events):
                    answer |= {name: value for name, value in chunk.items() if name != "choices" and value is not None}
                    for piece in chunk.get("choices") or ():
                        _add_choice(choices, piece)
        if not choices:
            raise LookupError("no choice")
        answer = {name: value for name, value in answer.items() if value != ""}  # transformers: an empty name
        answer["object"] = str(answer.get("object", "")).removesuffix(".chunk")
        answer["choices"] = [choices[index] for index in sorted(choices)]
        reply = WholeReply(json_text.dumps_with_nan(answer), stream.usage, held)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise errors.invalid_response("events that do not belong to this API") from None
    await stream.aclose()
    return reply


def _add_choice(choices: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    index = piece.get("index", 0)
    choice = choices.setdefault(index, {"index": index, "finish_reason": None})
    if "text" in piece:
        choice["text"] = choice.get("text", "") + (piece["text"] or "")
    if (delta := piece.get("delta")) is not None:
        message = choice.setdefault("message", {"role": "assistant", "content": ""})
        for name, value in delta.items():
            if name == "tool_calls":
                for call in value or ():
                    _add_call(message.setdefault("tool_calls", []), call)
            elif name in _TEXTS:
                if value:
                    message[name] = message.get(name, "") + value
            elif value is not None:
                message[name] = value
    choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]


def _add_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call, whose arguments may arrive in several."""
    index = piece["index"]
    if index == len(calls):
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], piece.get("function") or {}
    call["id"] = piece.get("id") or call["id"]
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""
