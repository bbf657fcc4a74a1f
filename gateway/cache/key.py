"""Decides whether a request may use the answer cache, and computes its cache key.

A key is the SHA-256 digest of everything that the answer depends on: tenant, path, body, headers, and the state that
the request is served with. A request uses the cache only if nothing else can change its answer: no tools, no state on a
server, and only text.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from coe.core import TEXT_APIS, Chat, RequestOptions
from coe.registry import CacheSpec
from gateway.dialects.parsing import TEXT_PARTS

MAX_BODY_BYTES = 2**20
"""Bytes of a request body; the digest of a larger one would hold up the event loop."""
_IGNORED_FIELDS = frozenset(("store", "prompt_cache_retention"))
"""Fields that do not change the answer."""
_ECHOED_FIELDS = frozenset(("user", "metadata", "safety_identifier", "prompt_cache_key"))
"""Fields that an answer of the Responses API repeats, and that do not change the answers of other APIs."""
_EXCLUDING_FIELDS = (
    *("tools", "functions", "web_search_options", "search_parameters", "plugins", "mcp_servers", "container"),
    *("store", "previous_response_id", "conversation", "background", "audio"),
)
"""Fields with which a request never uses the cache: tools, state on a server, and audio."""
_TEXT_NEEDS = frozenset(("json_schema", "json_object", "n", "logprobs", "echo"))
"""Capabilities whose requests and answers are texts."""
_TEXT_ONLY = (None, ["text"])
"""Values of `modalities` for an answer that is a text."""
_TEXT_ROLES = ("system", "developer", "user", "assistant")
_MESSAGE_EXCLUDING_FIELDS = ("tool_calls", "function_call", "audio")


def is_cacheable(chat: Chat, options: RequestOptions, spec: CacheSpec) -> bool:
    """Return whether the request uses the cache. It parses nothing and reads each message once."""
    if not options.cache or options.session is not None or options.purpose is not None:
        return False
    if chat.api not in TEXT_APIS or chat.needs - _TEXT_NEEDS or chat.fields.get("modalities") not in _TEXT_ONLY:
        return False
    if spec.when == "deterministic" and not is_deterministic(chat):
        return False
    return not any(chat.fields.get(name) for name in _EXCLUDING_FIELDS) and _has_only_text(chat)


def is_deterministic(chat: Chat) -> bool:
    """Return whether the client declares that it expects the same answer again: temperature 0 or a seed."""
    temperature = chat.fields.get("temperature")
    return (type(temperature) in (int, float) and temperature == 0) or chat.fields.get("seed") is not None


def cache_key(state: bytes, chat: Chat, options: RequestOptions, *, path: str, tenant: str | None) -> bytes | None:
    """Return the key of the answer: 32 bytes, or None for a body that is nested too deeply.

    `model` counts as what it stands for, so that aliases share answers. `state` is the digest of declaration, plan,
    router and the other artifacts in use.
    """
    ignored = _IGNORED_FIELDS if chat.api == "responses" else _IGNORED_FIELDS | _ECHOED_FIELDS
    body = {name: value for name, value in chat.fields.items() if name not in ignored}
    body["stream"], body["model"] = chat.stream, chat.model
    headers = [options.recipe, options.cost_weight, options.retrieval, sorted(options.version_headers.items())]
    if (rule := options.rule) is not None:  # a request must not get the answer of an expert that its rule excludes
        headers.append([rule.experts, rule.only_local])
    headers.append(options.rules)
    try:
        identity = orjson.dumps([tenant, chat.api, path, headers, body], option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson reads deeper nesting than it writes
        return None
    return hashlib.sha256(state + identity).digest()


def choices_of(chat: Chat) -> int:
    """Return the number of answers that the request wants."""
    return int(chat.fields.get("n") or 1)


def _has_only_text(chat: Chat) -> bool:
    fields = chat.fields
    prompt = fields.get("prompt")
    if chat.api == "completions":
        return isinstance(prompt, str)
    if prompt is not None or not _is_text(fields.get("system")) or not _is_text(fields.get("instructions")):
        return False  # `prompt` of the Responses API names a template on the server
    items = fields.get("input" if chat.api == "responses" else "messages")
    return isinstance(items, str) or (isinstance(items, list) and all(map(_is_text_message, items)))


def _is_text_message(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and item.get("type", "message") == "message"
        and item.get("role") in _TEXT_ROLES
        and not any(item.get(name) for name in _MESSAGE_EXCLUDING_FIELDS)
        and _is_text(item.get("content"))
    )


def _is_text(content: Any) -> bool:
    """Return whether a content is a text, text parts, or absent."""
    if content is None or isinstance(content, str):
        return True
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in TEXT_PARTS for part in content
    )
