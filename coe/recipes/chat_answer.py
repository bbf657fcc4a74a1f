"""Reads the text of a complete chat answer, as JSON or as a stream."""

from __future__ import annotations

from typing import Any

from coe import json_text

_INCOMPLETE_REASONS = ("length", "max_tokens", "model_length", "content_filter", "tool_calls", "function_call")
"""Finish reasons of an answer whose text is not a complete answer, as various servers write them."""


def answer_text(body: bytes, *, stream: bool) -> str | None:
    """Return the text; None if it was cut off or refused, calls a tool, or is not of Chat Completions."""
    try:
        if not stream:
            choice = json_text.loads(body)["choices"][0]
            message = choice["message"]
            content = message["content"]
            text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
            return None if _is_incomplete(choice, message) else text
        parts: list[str] = []
        for line in body.splitlines():
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                for choice in json_text.loads(data).get("choices") or ():
                    delta = choice.get("delta") or {}
                    if _is_incomplete(choice, delta):
                        return None
                    parts.append(delta.get("content") or "")
        return "".join(parts)
    except (ValueError, TypeError, AttributeError, LookupError):  # not of Chat Completions
        return None


def _is_incomplete(choice: dict[str, Any], message: dict[str, Any]) -> bool:
    reason = choice.get("finish_reason")
    return bool(reason in _INCOMPLETE_REASONS or message.get("refusal") or message.get("tool_calls"))
