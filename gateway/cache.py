"""The exact answer cache: answers an identical request with the stored answer, without a call to an expert.

`AnswerCache.lookup` runs between the steps parse and classify. A miss goes on; its answer is held while it is relayed,
and `observe` stores it with the record, after the last byte.

A key is the SHA-256 digest of everything that the answer depends on: tenant, body, headers, and the state that the
request is served with. A request of Chat Completions uses the cache if nothing else can change its answer: no tools, no
state on a server, and only text.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson

from coe.core import FAST_UNCERTAIN, Chat, Reason, Reply, RequestOptions
from coe.experts.http.replies import HeldAnswer, WholeReply
from coe.outage import Outage
from coe.recipes.calls import VERIFIED
from coe.registry import CacheSpec
from coe.usage import Usage
from gateway.dialects.chat import TEXT_PARTS
from gateway.request.cached_answer import CachedAnswer, CacheUse, is_complete
from gateway.request.trace import Trace
from gateway.shared_store import MemoryStore, RedisStore, SharedCache, ValueStore
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
_IGNORED_FIELDS = frozenset(
    ("store", "prompt_cache_retention", "user", "metadata", "safety_identifier", "prompt_cache_key")
)
"""Fields that do not change the answer."""
_EXCLUDING_FIELDS = (
    *("tools", "functions", "web_search_options", "search_parameters", "plugins", "mcp_servers"),
    *("store", "audio"),
)
"""Fields with which a request never uses the cache: tools, state on a server, and audio."""
_TEXT_NEEDS = frozenset(("json_schema", "json_object", "logprobs"))
"""Capabilities whose requests and answers are one text."""
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

    async def lookup(self, trace: Trace, *, body_bytes: int) -> Reply | None:
        """Return the cached answer of a parsed request and record it in the trace; None for a miss, or if the request
        does not use the cache."""
        chat, options, spec = trace.chat, trace.options, trace.snapshot.registry.cache
        if spec is None or body_bytes > MAX_BODY_BYTES or not trace.caller.cache:
            return None
        if not is_cacheable(chat, options, spec):
            return None
        trace.step("cache")
        key = cache_key(self._state_of(trace.snapshot), chat, options, tenant=trace.caller.tenant)
        if key is None:
            return None
        (stored,) = await self.answers.get([key])
        answer = None
        with suppress(ValueError):  # a damaged entry is a miss
            answer = None if stored is None else CachedAnswer.from_bytes(stored)
        if answer is not None and len(answer.probabilities) != len(trace.snapshot.composition.router.categories):
            answer = None
        memory = trace.attempts.memory
        trace.cache = use = CacheUse(key, answer, memory=memory)
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
        if (use := trace.cache) is not None:
            try:
                if use.answer is None and trace.outcome == "ok" and _is_storable(trace):
                    self._store(trace, use)
            finally:
                use.release()

    def _store(self, trace: Trace, use: CacheUse) -> None:
        decision, prediction, reply, spec = trace.decision, trace.prediction, trace.reply, trace.snapshot.registry.cache
        if decision is None or prediction is None or reply is None or spec is None or (body := use.body) is None:
            return
        if is_complete(body, media_type=reply.media_type):
            before_rule = prediction.router_probabilities
            answer = CachedAnswer(
                media_type=reply.media_type,
                expert=decision.expert,
                answered_by=trace.expert,
                category=decision.category,
                confidence=decision.confidence,
                input_tokens=reply.usage.input_tokens,
                output_tokens=reply.usage.output_tokens,
                probabilities=prediction.probabilities.tolist(),
                stage=prediction.stage,
                in_distribution=prediction.in_distribution,
                language=prediction.language,
                router_probabilities=None if before_rule is None else before_rule.tolist(),
                body=body,
            )
            self.answers.put(use.key, answer.to_bytes(), ttl=spec.ttl)

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


def _is_storable(trace: Trace) -> bool:
    """Return True if an equal request would get the same decision and answer, so that the answer may be stored."""
    decision, prediction, retrieval, log = trace.decision, trace.prediction, trace.retrieval_result, trace.recipe_log
    return (
        decision is not None
        and decision.reason in _STORED_REASONS
        and prediction is not None
        and prediction.stage != FAST_UNCERTAIN
        and retrieval.status in _STORED_RETRIEVAL
        and not retrieval.ms  # otherwise the store was searched, and the answer depends on its documents
        and (log is None or (log.stop in VERIFIED and all(call.outcome in _STORED_OUTCOMES for call in log.calls)))
    )


def is_cacheable(chat: Chat, options: RequestOptions, spec: CacheSpec) -> bool:
    """Return whether the request uses the cache. It parses nothing and reads each message once."""
    fields, messages = chat.fields, chat.fields.get("messages")
    return (
        chat.api == "chat"
        and options.cache
        and options.session is None
        and options.purpose is None
        and not chat.needs - _TEXT_NEEDS
        and fields.get("modalities") in (None, ["text"])
        and (spec.when == "always" or is_deterministic(chat))
        and not any(fields.get(name) for name in _EXCLUDING_FIELDS)
        and isinstance(messages, list)
        and all(map(_is_text_message, messages))
    )


def is_deterministic(chat: Chat) -> bool:
    """Return whether the client declares that it expects the same answer again: temperature 0 or a seed."""
    temperature = chat.fields.get("temperature")
    return (type(temperature) in (int, float) and temperature == 0) or chat.fields.get("seed") is not None


def cache_key(state: bytes, chat: Chat, options: RequestOptions, *, tenant: str | None) -> str | None:
    """Return the key of the answer, or None for a body that is nested too deeply.

    `model` counts as what it stands for, so that aliases share answers. `state` is the digest of declaration, plan,
    router and the other artifacts in use.
    """
    body = {name: value for name, value in chat.fields.items() if name not in _IGNORED_FIELDS}
    body["stream"], body["model"] = chat.stream, chat.model
    headers = [options.recipe, options.cost_weight, options.retrieval, sorted(options.version_headers.items())]
    if (rule := options.rule) is not None:  # a request must not get the answer of an expert that its rule excludes
        headers.append([rule.experts, rule.only_local])
    headers.append(options.rules)
    try:
        identity = orjson.dumps([tenant, headers, body], option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson reads deeper nesting than it writes
        return None
    return hashlib.sha256(state + identity).hexdigest()


def _is_text_message(item: Any) -> bool:
    if not isinstance(item, dict) or item.get("role") not in _TEXT_ROLES:
        return False
    content = item.get("content")
    is_text = content is None or isinstance(content, str)
    has_texts = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in TEXT_PARTS for part in content
    )
    return (is_text or has_texts) and not any(item.get(name) for name in _MESSAGE_EXCLUDING_FIELDS)
