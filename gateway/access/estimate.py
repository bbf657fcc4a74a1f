"""Estimate the tokens of a request from its parsed body: what limits reserve, and charge where no server counts.

Experts have tokenizers of their own, so this is no exact count. Texts are a quarter of their characters; tools, tool
calls and all else that a model reads as JSON, a quarter of the JSON; images, files and audio by what providers charge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from coe.core import Api, Chat
from coe.errors import InvalidRequest
from coe.experts.api_formats import LENGTH_FIELDS, MAX_TOKEN_COUNT
from gateway.dialects.parsing import ANSWER_COUNTS, TEXT_PARTS, prompts_of

CHARACTERS = 4
"""Of text in a token, about."""
OUTPUT = 512
"""Tokens of an answer whose length the request does not bound."""
FILE = 1600
"""Tokens of a large image as Anthropic counts it, or of about one page of a document."""
PAGE = 100_000
"""Characters of a document's base64 that are taken for one page."""
REFERENCE = 2000
"""Characters that a link or the name of a stored file has at most."""
AUDIO = 2000
"""Characters of audio's base64 in a token: OpenAI counts ten a second, which are 16 kB of MP3."""

_PROMPTS: Mapping[Api, str] = {"completions": "prompt", "embeddings": "input"}
_READ: Mapping[Api, tuple[str, ...]] = {
    "chat": ("tools", "functions", "response_format", "prediction"),
    "responses": ("tools", "text"),
    "messages": ("tools", "output_config", "output_format", "mcp_servers"),
}
"""Fields beside the conversation that a model reads."""
_ITEMS: Mapping[Api, str] = {"chat": "messages", "responses": "input", "messages": "messages"}
_COUNTED = frozenset(("role", "content", "name", "type", "id", "status", "signature", "cache_control"))
"""Of a message or item: what is counted elsewhere, or no model reads."""
_SOURCES = ("base64", "url", "file")
_IMAGES = frozenset(("image", "image_url", "input_image", "computer_screenshot", "image_generation_call"))
_FILES = frozenset(("file", "input_file", "document", "video_url", "input_video", "video"))
_AUDIO = frozenset(("input_audio", "audio", "audio_url"))


def input_tokens(chat: Chat) -> float:
    """Of all that is sent. Raises InvalidRequest for a body that is nested too deeply to be sent on."""
    prompts = _prompts(chat)
    if prompts:  # `chat.characters` are those of the longest, which the context bounds
        suffix = chat.fields.get("suffix")
        texts = sum(len(one) / CHARACTERS if isinstance(one, str) else len(one) for one in prompts)
        return texts + (len(suffix) / CHARACTERS if isinstance(suffix, str) else 0)
    fields = chat.fields
    beside = sum([_written(fields[name]) for name in _READ.get(chat.api, ()) if fields.get(name)])
    items = fields.get(_ITEMS.get(chat.api, ""))
    return chat.characters / CHARACTERS + beside + (sum(map(_item, items)) if isinstance(items, list) else 0.0)


def output_tokens(chat: Chat) -> float:
    """At most, as far as the request says; its `n` answers together."""
    if chat.api == "embeddings":
        return 0
    fields = chat.fields
    longest: float = max([value for name in LENGTH_FIELDS if (value := fields.get(name)) is not None], default=OUTPUT)
    answers: float = max([value for name in ANSWER_COUNTS if (value := fields.get(name)) is not None], default=1)
    return min(longest * answers * (len(_prompts(chat)) or 1), MAX_TOKEN_COUNT)


def _prompts(chat: Chat) -> list[str | list[Any]]:
    """The several texts, or lists of tokens, of one request; none where it is a conversation."""
    name = _PROMPTS.get(chat.api)
    return prompts_of(chat.fields.get(name), name) if name else []


def _item(item: Any) -> float:
    """One message or item, beside its text."""
    if not isinstance(item, dict):
        return 0
    if item.get("type") in _IMAGES:
        return FILE
    content = item.get("content", item.get("output"))
    if isinstance(content, dict):
        content = [content]
    found = sum(map(_block, _inner(content))) if isinstance(content, list) else 0.0
    if item.keys() <= _COUNTED:
        return found
    more = {name: value for name, value in item.items() if name not in _COUNTED and name != "output"}
    return found + _written(more)


def _inner(content: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The blocks of a message, and in place of a tool's results those inside."""
    for block in content:
        if not isinstance(block, dict):
            continue
        if block.get("type") != "tool_result":
            yield block
        elif isinstance(inner := block.get("content"), list):
            yield from (one for one in inner if isinstance(one, dict))


def _block(block: dict[str, Any]) -> float:
    """One part of a message that is no text."""
    kind = block.get("type")
    if kind in TEXT_PARTS:
        return 0
    source = block.get("source")
    if kind in _IMAGES:
        return FILE
    if kind in _AUDIO:
        size = _longest_text(block)
        return size / AUDIO if size > REFERENCE else FILE
    if kind in _FILES and not (isinstance(source, dict) and source.get("type") not in _SOURCES):
        return FILE * max(1, math.ceil(_longest_text(block) / PAGE))
    return _written({name: value for name, value in block.items() if name not in ("signature", "cache_control")})


def _longest_text(block: dict[str, Any]) -> int:
    """Characters of what is probably the data: the longest text in a block, or in an object of it."""
    inner = [value for part in block.values() if isinstance(part, dict) for value in part.values()]
    return max([len(value) for value in (*block.values(), *inner) if isinstance(value, str)], default=0)


def _written(value: Any) -> float:
    """Of a value as JSON."""
    try:
        return len(orjson.dumps(value).decode()) / CHARACTERS if value else 0
    except orjson.JSONEncodeError as error:  # orjson reads deeper nesting than it writes
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error
