"""The answer cache in the request pipeline: a lookup after the request is parsed, and the storage of new answers.

`CacheStep.lookup` runs between the steps parse and classify. A miss continues through the pipeline; its answer is
kept while it is relayed, and `observe` stores it with the record, after the last byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson

from coe.core import FAST_UNCERTAIN, Reason
from coe.outage import Outage
from coe.recipes.calls import VERIFIED
from coe.registry import CacheSpec
from coe.supervision import TaskFailed, ignore_failure
from gateway.cache.answer import CachedAnswer, CacheUse, ReplayedReply, is_complete
from gateway.cache.key import MAX_BODY_BYTES, cache_key, choices_of, is_cacheable
from gateway.request.trace import Trace
from gateway.serving_state import Serving
from gateway.shared_cache import SharedCache
from gateway.shared_store import MemoryStore, RedisStore, SharedStore

MEMORY = "memory"
"""The value of `cache.store` for a store in each process."""
LOOKUP_SECONDS = 0.05
"""Time limit of a request that waits for its answer."""
_STORED_REASONS: frozenset[Reason] = frozenset(("routed", "uncertain", "sticky", "pinned", "rule"))
"""Decision reasons whose answers are stored. Fallback, spill and exploration answer with another expert."""
_STORED_RETRIEVAL = ("none", "off", "skipped")
"""Retrieval results that do not depend on documents, provided that the store was not searched."""

_STORED_OUTCOMES = ("answered", "unreadable", "cut_off", "graded")
"""Outcomes of a recipe's calls, if none failed."""


def cache_store(spec: CacheSpec) -> SharedStore:
    """The declared store. Raises ConfigError for an invalid address."""
    if spec.store == MEMORY:
        return MemoryStore(max_bytes=spec.max_bytes)
    return RedisStore(spec.store, "answers", setting="cache.store", max_bytes=spec.max_bytes)


@asynccontextmanager
async def open_cache(
    spec: CacheSpec | None, *, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[CacheStep | None]:
    """The cache that is declared, None without one. Raises ConfigError for an invalid address."""
    if spec is None:
        yield None
        return
    outage = Outage("cache", "; until the store is back nothing is answered from the cache")
    async with SharedCache(
        cache_store(spec), outage, task="answer-cache", wait=LOOKUP_SECONDS, task_failed=task_failed
    ) as answers:
        yield CacheStep(answers)


class CacheStep:
    """The cache of a process. It outlives reloads: keys contain the state that a request is served with."""

    def __init__(self, answers: SharedCache) -> None:
        self.answers = answers
        self._state: tuple[Serving | None, bytes] = (None, b"")

    async def lookup(self, trace: Trace, *, path: str, body_bytes: int) -> ReplayedReply | None:
        """Return the cached answer of a parsed request and record it in the trace; None for a miss, or if the request
        does not use the cache."""
        chat, options, spec = trace.chat, trace.options, trace.serving.registry.cache
        if chat is None or options is None or spec is None or body_bytes > MAX_BODY_BYTES or not trace.caller.cache:
            return None
        if (trace.stored is not None and trace.stored.stateful) or not is_cacheable(chat, options, spec):
            return None
        with trace.step("cache"):
            key = cache_key(self._state_of(trace.serving), chat, options, path=path, tenant=trace.caller.tenant)
            if key is None:
                return None
            categories = len(trace.serving.composition.router.categories)
            (stored,) = await self.answers.get([key.hex()])
            found = _answer_of(stored, categories)
        trace.cache = CacheUse(key, found, choices=choices_of(chat), memory=trace.attempts.memory)
        if found is None:
            return None
        reply = ReplayedReply(found, memory=trace.attempts.memory)
        trace.replayed(found, reply)
        return reply

    def observe(self, trace: Trace) -> None:
        """Store the answer of a finished request that missed, if it is complete and holds for an equal request."""
        if trace.cache is not None:
            self._store(trace)
            trace.cache.release()

    def _store(self, trace: Trace) -> None:
        use, chat, decision, prediction, spec = (
            trace.cache,
            trace.chat,
            trace.decision,
            trace.prediction,
            trace.serving.registry.cache,
        )
        if use is None or use.answer is not None or trace.outcome != "ok" or spec is None:
            return
        if chat is None or decision is None or prediction is None or trace.reply is None or not _is_storable(trace):
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

    def _state_of(self, serving: Serving) -> bytes:
        """The digest of what a decision depends on, computed once for each state."""
        if self._state[0] is not serving:
            self._state = (serving, _digest(serving))
        return self._state[1]


def _answer_of(stored: bytes | None, categories: int) -> CachedAnswer | None:
    """The stored answer; None without one, or for an entry that is damaged."""
    if not isinstance(stored, bytes):
        return None
    try:
        found = CachedAnswer.from_bytes(stored)
    except ValueError:
        return None
    return found if found.prediction.probabilities.shape == (categories,) else None


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


def _digest(serving: Serving) -> bytes:
    composition, registry = serving.composition, serving.registry
    state = [
        registry.digest,
        registry.policy.model_dump(mode="json"),
        registry.retrieval.model_dump(mode="json"),
        [rule.model_dump(mode="json") for rule in registry.rules],
        composition.router.version,
        composition.assignment_digest,
        sorted((kind, version) for kind, version in serving.versions.items()),
    ]
    return hashlib.sha256(orjson.dumps(state, option=orjson.OPT_SORT_KEYS)).digest()
