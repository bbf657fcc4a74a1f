"""Reads the text of a complete chat answer, or the tools that it calls, as JSON or as a stream.

Members that call the same tools with equal arguments agree: arguments are compared as JSON values, and neither the
order of parallel calls nor their ids matter. A recipe gets requests with tools only if it declares `tools: agreement`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from coe import json_text
from coe.recipes.final_answers.answers import json_form

MALFORMED = (ValueError, TypeError, KeyError, AttributeError, LookupError)
"""Errors of reading an answer that does not have the form of Chat Completions."""
LENGTH_REASONS = ("length", "max_tokens", "model_length")
"""Finish reasons of an answer that a limit on its tokens has ended, as various servers write them."""
MAX_LAST_EVENTS = 16
"""Last events of a stream that are searched for its finish reason; token counts and the end follow it."""
_INCOMPLETE_TEXT_REASONS = (*LENGTH_REASONS, "content_filter", "tool_calls", "function_call")
"""Finish reasons of an answer whose text is not a complete answer."""
_COMPLETE_CALL_REASONS = ("tool_calls", "function_call", "stop")
"""Finish reasons of an answer whose calls are complete; some servers write `stop`."""


def answer_text(body: bytes, *, stream: bool) -> str | None:
    """Return the text; None if it was cut off or refused, calls a tool, or is not of Chat Completions."""
    try:
        return _streamed_text(body) if stream else _plain_text(json_text.loads(body))
    except MALFORMED:
        return None


def _plain_text(answer: dict[str, Any]) -> str | None:
    choice = answer["choices"][0]
    message = choice["message"]
    if choice.get("finish_reason") in _INCOMPLETE_TEXT_REASONS or message.get("refusal") or message.get("tool_calls"):
        return None
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _streamed_text(events: bytes) -> str | None:
    parts: list[str] = []
    for choice in _choices(events.splitlines()):
        delta = choice.get("delta") or {}
        if choice.get("finish_reason") in _INCOMPLETE_TEXT_REASONS or delta.get("refusal") or delta.get("tool_calls"):
            return None
        parts.append(delta.get("content") or "")
    return "".join(parts)


def finish_reason(body: bytes, *, stream: bool) -> str | None:
    """Return the finish reason; None without one. Of a stream only the last events are read, as it may be long."""
    try:
        choices = _choices(_last_lines(body)) if stream else json_text.loads(body)["choices"]
        return next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), None)
    except MALFORMED:
        return None


def _last_lines(events: bytes) -> Iterator[bytes]:
    """Yield the last lines of a stream that are not empty, the last one first."""
    end, left = len(events), MAX_LAST_EVENTS
    while end > 0 and left:
        start = events.rfind(b"\n", 0, end) + 1
        if line := events[start:end]:
            left -= 1
            yield line
        end = start - 1


def _choices(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the choices of the chunks of a stream."""
    for line in lines:
        if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
            yield from json_text.loads(data).get("choices") or ()


# -------------------------------------------------------------------------------------------------------------- tools


def called_tools(body: bytes, *, stream: bool) -> str | None:
    """Return the canonical form of the calls; None if there are none, or they are cut off or malformed."""
    try:
        message, finish = _streamed_message(body) if stream else _plain_message(json_text.loads(body))
        return _form_of_calls(_called_functions(message)) if finish in _COMPLETE_CALL_REASONS else None
    except MALFORMED:
        return None


def _plain_message(answer: dict[str, Any]) -> tuple[Mapping[str, Any], Any]:
    """Return the message and its finish reason."""
    choice = answer["choices"][0]
    return choice["message"], choice.get("finish_reason")


def _streamed_message(events: bytes) -> tuple[Mapping[str, Any], Any]:
    """Return the calls of a stream as a message, joined by their index, and the finish reason."""
    calls: dict[int, dict[str, str]] = {}
    function: dict[str, str] = {}
    finish = None
    for choice in _choices(events.splitlines()):
        delta = choice.get("delta") or {}
        finish = choice.get("finish_reason") or finish
        for piece in delta.get("tool_calls") or ():
            _join(calls.setdefault(piece.get("index", len(calls)), {}), piece.get("function") or {})
        _join(function, delta.get("function_call") or {})
    return {"tool_calls": [{"function": call} for call in calls.values()], "function_call": function}, finish


def _join(call: dict[str, str], piece: Mapping[str, Any]) -> None:
    for key in ("name", "arguments"):
        if text := piece.get(key):
            call[key] = call.get(key, "") + text


def _called_functions(message: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Return the functions of all calls; `function_call` is the older form of a single one."""
    if calls := message.get("tool_calls"):
        return [call["function"] for call in calls]
    return [message["function_call"]] if message.get("function_call") else []


def _form_of_calls(functions: Iterable[Mapping[str, Any]]) -> str | None:
    """Return names and arguments in a fixed order; None without calls, or if arguments are not a JSON object."""
    calls: list[tuple[str, str]] = []
    for function in functions:
        arguments = json_form((function.get("arguments") or "{}").strip())
        if arguments is None:
            return None
        calls.append((str(function["name"]), arguments))
    return f"tools:{orjson.dumps(sorted(calls)).decode()}" if calls else None
