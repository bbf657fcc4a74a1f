"""`POST /v1/messages/count_tokens`: about how many tokens a Messages request has, without asking any expert."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import orjson

from coe.abilities import check_model
from coe.core import Chat, Wishes
from coe.errors import InvalidRequest
from gateway.access.allowance import CHARACTERS
from gateway.current import Current, Serving
from gateway.dialects import messages as dialect
from gateway.dialects.parts import TEXT_PARTS
from gateway.inquiry import Inquiry

FILE = 1600
"""Tokens of an image or a document that is not text: what Anthropic counts for a large image, or about one page."""
_FILES = ("base64", "url", "file")


def count_tokens(current: Current) -> Inquiry:
    """Takes a Messages body and answers with an estimate: each expert has a tokenizer of its own, and `auto` may be any
    of them. What an expert gets beside the body (its system prompt, passages) is not counted. Nothing is logged."""
    return Inquiry(current, dialect=dialect, permission="chat", answer=_answer)


async def _answer(serving: Serving, chat: Chat, _: Wishes) -> dict[str, Any]:
    check_model(chat, serving.registry)
    return {"input_tokens": estimate(chat)}


def estimate(chat: Chat) -> int:
    """Tokens of a Messages request: of its texts as limits count them; of tools, their calls, and whatever else is no
    text, as of the JSON that they are written in; and FILE for each file."""
    found = chat.characters / CHARACTERS + _written(chat.fields.get("tools"))
    return math.ceil(found + sum(map(_tokens, _blocks(chat.fields["messages"]))))


def _blocks(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Those of all messages, and in place of a tool's results those inside."""
    for message in messages:
        content = message.get("content")
        for block in content if isinstance(content, list) else ():
            if block["type"] != "tool_result":
                yield block
            elif isinstance(block.get("content"), list):
                yield from block["content"]


def _tokens(block: dict[str, Any]) -> float:
    """Beside those of its text, which is counted."""
    if block["type"] in TEXT_PARTS:
        return 0
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") in _FILES:
        return FILE
    read = {name: value for name, value in block.items() if name != "signature"}  # of thinking; no model reads it
    return _written(read)


def _written(value: Any) -> float:
    if not value:
        return 0
    try:
        return len(orjson.dumps(value).decode()) / CHARACTERS
    except orjson.JSONEncodeError as error:  # orjson reads deeper nesting than it writes
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error
