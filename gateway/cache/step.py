"""The exact answer cache: answers an identical request with the stored answer, without a call to an expert.

`AnswerCache.lookup` runs between the steps parse and classify. A miss goes on; its answer is held while it is relayed,
and `observe` stores it with the record, after the last byte.

A key is the SHA-256 digest of everything that the answer depends on: tenant, path, body, headers, and the state that
the request is served with. A request uses the cache only if nothing else can change its answer: no tools, no state on a
server, and only text.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from coe.core import FAST_UNCERTAIN, TEXT_APIS, Chat, Reason, Reply, RequestOptions
from coe.experts.held_answer import HeldAnswer, WholeReply
from coe.outage import Outage
from coe.recipes.calls import VERIFIED
from coe.registry import CacheSpec
from coe.usage import Usage
from gateway.cache.answer import CachedAnswer, CacheUse, is_complete
from gateway.dialects.chat import TEXT_PARTS
from gateway.request.trace import Trace
from gateway.shared_cache import SharedCache
from gateway.shared_store import MemoryStore, RedisStore, ValueStore
from gateway.snapshot import Snapshot

MEMORY = "memory"
"""The value of `cache.store` for a store in each process."""
LOOKUP_SECONDS = 0.05
"""Time limit of a request that waits for its answer."""
_STORED_REASONS: frozenset[Reason] = frozenset(("routed", "uncertain", "sticky", "pinned", "rule"))
"""Decision reasons whose answers are stored. Fallback, spill and exploration answer with another expert."""
_STORED_RETRIEVAL = ("none", "off", "skipped")
"""Retrieval results that do not depend on documents, provided that the store was not searched."""

_STORED_OUTCOMES = ("answered", "unreadable", "graded")
"""Outcomes of a recipe's calls, if none failed."""


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


def cache_store(spec: CacheSpec) -> ValueStore:
    """The declared store. Raises ConfigError for an invalid address."""
    if spec.store == MEMORY:
        return MemoryStore(max_bytes=spec.max_bytes)
    return RedisStore(spec.store, "answers", setting="cache.store", max_bytes=spec.max_bytes)


@asynccontextmanager
async def open_cache(spec: CacheSpec | None) -> AsyncIterator[AnswerCache | None]:
    """The cache that is declared, None without one. Raises ConfigError for an invalid address."""
    if spec is None:
        yield None
        return
    outage = Outage("cache", "; until the store is back nothing is answered from the cache")
    async with SharedCache(cache_store(spec), outage, wait=LOOKUP_SECONDS) as answers:
        yield AnswerCache(answers)


class AnswerCache:
    """The cache of a process. It outlives reloads: keys contain the state that a request is served with."""

    def __init__(self, answers: SharedCache) -> None:
        self.answers = answers
        self._state: tuple[Snapshot | None, bytes] = (None, b"")

    async def lookup(self, trace: Trace, *, path: str, body_bytes: int) -> Reply | None:
        """Return the cached answer of a parsed request and record it in the trace; None for a miss, or if the request
        does not use the cache."""
        chat, options, spec = trace.chat, trace.options, trace.snapshot.registry.cache
        if spec is None or body_bytes > MAX_BODY_BYTES or not trace.caller.cache:
            return None
        if (trace.stored is not None and trace.stored.stateful) or not is_cacheable(chat, options, spec):
            return None
        trace.step("cache")
        key = cache_key(self._state_of(trace.snapshot), chat, options, path=path, tenant=trace.caller.tenant)
        if key is None:
            return None
        (stored,) = await self.answers.get([key.hex()])
        answer = _answer_of(stored, categories=len(trace.snapshot.composition.router.categories))
        memory = trace.attempts.memory
        choices = int(chat.fields.get("n") or 1)
        trace.cache = use = CacheUse(key, answer, choices=choices, memory=memory)
        if answer is None:
            trace.taps += (use.keep,)
            return None
        usage = Usage()
        usage.input_tokens, usage.output_tokens = answer.input_tokens, answer.output_tokens
        reply = WholeReply(answer.body, usage, HeldAnswer(memory))
        reply.media_type = answer.media_type
        trace.replayed(answer, reply)
        return reply

    def observe(self, trace: Trace) -> None:
        """Store the answer of a finished request that missed, if it is complete and holds for an equal request."""
        if trace.cache is not None:
            try:
                self._store(trace)
            finally:
                trace.cache.release()

    def _store(self, trace: Trace) -> None:
        use, chat, decision, prediction, spec = (
            trace.cache,
            trace.chat,
            trace.decision,
            trace.prediction,
            trace.snapshot.registry.cache,
        )
        if use is None or use.answer is not None or trace.outcome != "ok" or spec is None:
            return
        if decision is None or prediction is None or trace.reply is None or not _is_storable(trace):
            return
        body, media_type = use.body, trace.reply.media_type
        if body is None or not is_complete(body, api=chat.api, media_type=media_type, choices=use.choices):
            return
        usage = trace.reply.usage
        answer = CachedAnswer(
            media_type,
            body,
            decision.expert,
            trace.expert,
            decision.category,
            decision.confidence,
            prediction,
            usage.input_tokens,
            usage.output_tokens,
        )
        self.answers.put(use.key.hex(), answer.to_bytes(), ttl=spec.ttl)

    def _state_of(self, snapshot: Snapshot) -> bytes:
        """The digest of what a decision depends on, computed once for each state."""
        if self._state[0] is not snapshot:
            composition, registry = snapshot.composition, snapshot.registry
            state = [
                registry.digest,
                registry.policy.model_dump(mode="json"),
                registry.retrieval.model_dump(mode="json"),
                [rule.model_dump(mode="json") for rule in registry.rules],
                composition.router.version,
                composition.assignment_digest,
                sorted((kind, version) for kind, version in snapshot.versions.items()),
            ]
            digest = hashlib.sha256(orjson.dumps(state, option=orjson.OPT_SORT_KEYS)).digest()
            self._state = (snapshot, digest)
        return self._state[1]


def _answer_of(stored: bytes | None, *, categories: int) -> CachedAnswer | None:
    """The stored answer; None without one, or for an entry that is damaged."""
    if stored is None:
        return None
    try:
        answer = CachedAnswer.from_bytes(stored)
    except ValueError:
        return None
    return answer if answer.prediction.probabilities.shape == (categories,) else None


def _is_storable(trace: Trace) -> bool:
    """Return True if an equal request would get the same decision and answer, so that the answer may be stored."""
    decision, prediction, retrieval, log = trace.decision, trace.prediction, trace.retrieval_result, trace.recipe_log
    assert decision is not None
    assert prediction is not None
    return (
        decision.reason in _STORED_REASONS
        and prediction.stage != FAST_UNCERTAIN
        and retrieval.status in _STORED_RETRIEVAL
        and not retrieval.ms  # otherwise the store was searched, and the answer depends on its documents
        and (log is None or (log.stop in VERIFIED and all(call.outcome in _STORED_OUTCOMES for call in log.calls)))
    )


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
