"""Where passages go in a request's body, for each API: into the last turn of the user, before what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coe.core import Api

Fields = Mapping[str, Any]

_TEXT_PARTS = ("text", "input_text")
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def with_block(fields: Fields, api: Api, block: str) -> Fields | None:
    """The body with `block` before the user's last words; None where it does not end with words of the user's (a tool's
    result, an image alone, tokens instead of text). The given body stays as it is, and all else in it.

    Documents never go where the system's words stand, which experts obey.
    """
    if api in ("chat", "messages"):
        return _in_turns(fields, "messages", block)
    if api == "responses":
        return _in_text(fields, "input", block) or _in_turns(fields, "input", block)
    if api == "completions":
        return _in_text(fields, "prompt", block)
    return None


def answer_tokens(fields: Fields) -> int | None:
    """How long an answer the body asks for at most; None where it does not say."""
    found = (fields.get(name) for name in _LIMITS)
    return next((limit for limit in found if isinstance(limit, int)), None)


def _in_text(fields: Fields, name: str, block: str) -> Fields | None:
    text = fields.get(name)
    return {**fields, name: block + text} if isinstance(text, str) else None


def _in_turns(fields: Fields, name: str, block: str) -> Fields | None:
    turns = fields.get(name)
    if not isinstance(turns, list) or not turns:
        return None
    last = turns[-1]
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    content = _in_content(last.get("content"), block)
    return None if content is None else {**fields, name: [*turns[:-1], {**last, "content": content}]}


def _in_content(content: Any, block: str) -> Any:
    """Before the first text among the parts, so that tool results stay ahead of it, as Anthropic's API wants them."""
    if isinstance(content, str):
        return block + content
    if not isinstance(content, list):
        return None
    for index, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str):
            return [*content[:index], {**part, "text": block + part["text"]}, *content[index + 1 :]]
    return None
