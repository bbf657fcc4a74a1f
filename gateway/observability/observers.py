"""Observers of finished requests: Recorder writes the records that `record_of` makes of traces, and `find_record` reads
one back; ImplicitSignals detects implicit feedback.

The others are metrics, traces and the access log. `gateway.main` opens all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from coe.core import Decision, Reason
from coe.records import LogWriter, Pending
from coe.records.record import Feedback, FeedbackKind, RecipeCall, RoutingLog, RoutingRecord
from coe.registry import MAX_MODEL_CHARACTERS
from coe.registry.permission import excluded_experts
from coe.routing.composition import NO_RETRIEVAL, Composition
from coe.usage import Usage
from gateway.request.trace import Trace

_log = logging.getLogger("gateway")


class Recorder:
    """Hands the record of each finished request to the log's writer. It never waits and never raises."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def observe(self, trace: Trace) -> None:
        """Queues the record of a routed request. A request that failed before routing has no record, only metrics and
        an access line: otherwise strangers could push real records out of the log."""
        if trace.decision is not None:
            self._writer.put(record_of(trace))


NO_DECISION = Decision(expert="", category="", confidence=0.0, reason=cast(Reason, ""), candidates=())
"""Fields of the record of a request that was not routed."""
_NO_USAGE = Usage()


def record_of(trace: Trace) -> RoutingRecord:
    """The request's record in the routing log. Fields of features that it did not use have their defaults."""
    decision, prediction, options, routed = trace.decision or NO_DECISION, trace.prediction, trace.options, trace.routed
    chat, usage, attempts, snapshot = trace.chat, trace.usage or _NO_USAGE, trace.attempts, trace.snapshot
    composition, registry, first_token_ms = snapshot.composition, snapshot.registry, trace.first_token_ms
    extra: dict[str, Any] = {}
    if prediction is not None:
        extra = {"stage": prediction.stage, "language": prediction.language}
        if prediction.correction is not None:
            extra["correction"] = prediction.correction.digest
        if (posterior := prediction.router_probabilities) is not None:
            extra["router_probabilities"] = _named(composition, posterior)
    if (rule := options.rule) is not None:
        excluded = tuple(excluded_experts(registry, rule))
        extra |= {"only_local": rule.only_local, "limited": True, "excluded": excluded}
    if registry.log.store_prompts and not trace.only_local:
        extra |= {"prompt": routed.text or None, "left_out": tuple(map(str, routed.left_out))}
    if (log := trace.recipe_log) is not None:
        steps = tuple(map(RecipeCall.of, log.calls))
        extra |= {"recipe": log.recipe, "recipe_stop": log.stop, "steps": steps}
    if (result := trace.retrieval_result) is not NO_RETRIEVAL:
        extra |= {"retrieval": result.status, "gate": result.probability, "gain": result.gain}
        extra |= {"passages": tuple([passage.id for passage in result.passages]), "passage_tokens": result.tokens}
        extra["retrieval_ms"] = round(result.ms, 3)
    if trace.cache is not None:
        extra["cache"] = trace.cache.result
    return RoutingRecord(
        request_id=trace.request_id,
        time=trace.time,
        category=decision.category,
        confidence=decision.confidence,
        expert=decision.expert,
        reason=decision.reason,
        propensity=decision.propensity,
        candidates=decision.candidates,
        probabilities={} if prediction is None else _named(composition, prediction.probabilities),
        stage=extra.pop("stage", ""),
        router=composition.router.version,
        config=registry.digest,
        digest=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() if (text := routed.text) else "",
        outcome=trace.outcome,
        attempts=attempts.count,
        stream=chat.stream,
        routing_ms=round(trace.routing_ms, 3),
        first_token_ms=None if first_token_ms is None else round(first_token_ms, 3),
        total_ms=round(trace.elapsed_ms(), 3),
        in_distribution=1.0 if prediction is None else prediction.in_distribution,
        cost_weight=options.cost_weight,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        session=options.session,
        api=trace.api,
        tenant=trace.caller.tenant,
        key=trace.caller.key,
        cost=trace.cost,
        dropped=trace.dropped,
        assignment=composition.assignment_digest,
        utility=tuple([round(utility, 4) for utility in decision.utility]),
        price=tuple([round(price, 4) for price in decision.price]),
        propensities=decision.propensities,
        needs=tuple(sorted(chat.needs)),
        purpose=options.purpose or "",
        fallback_from=decision.fallback_from,
        cause=decision.cause,
        model=trace.requested_model[:MAX_MODEL_CHARACTERS],
        resolved_model=chat.model[:MAX_MODEL_CHARACTERS],
        plan=snapshot.plan,
        unpriced=trace.unpriced,
        rule=decision.rule,
        **extra,
    )


def _named(composition: Composition, posterior: NDArray[np.float32]) -> dict[str, float]:
    """The probabilities to five digits; `round` takes twice as long, as it goes through decimal digits."""
    names = composition.router.categories
    return {name: int(p * 1e5 + 0.5) / 1e5 for name, p in zip(names, posterior.tolist(), strict=True)}


LOOKUP_DELAYS_SECONDS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Delay before each lookup."""
_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")


async def find_record(
    log: RoutingLog, request_id: str, *, counts: Callable[[RoutingRecord], bool] = lambda record: True
) -> RoutingRecord | None:
    """The record of that id, whose writing may be in progress. None for an unknown request, or for one whose record
    does not `count`, which takes as long. An id that no gateway issues is looked up once. Raises StoreError."""
    is_issued = _REQUEST_ID.fullmatch(request_id)
    for pause in LOOKUP_DELAYS_SECONDS if is_issued else LOOKUP_DELAYS_SECONDS[:1]:
        await asyncio.sleep(pause)
        record = await log.find(request_id)
        if record is not None and counts(record):
            return record
    return None


MAX_REGENERATION_SECONDS = 300.0
"""Time after an answer within which the same conversation is a regeneration."""
MIN_REGENERATION_SECONDS = 1.0
"""Time after an answer before which it is not: a client that is faster is a program, not a reader."""
MAX_REGENERATIONS = 3
"""Regenerations of one conversation that are reported; a client with more is a program."""
MIN_CHARACTERS = 40
"""Conversations below this length are compared only within a session: many users say "hello"."""
MAX_CONVERSATIONS = 10_000
"""Latest conversations that are remembered, about 300 bytes each."""


class ImplicitSignals:
    """Detects implicit feedback in finished requests: a regenerated answer, and an abandoned stream.

    The signals are weak evidence, as a retry or a closed window may have any cause; learning weighs them accordingly
    (`coe/learning/experience.py`). Conversations are remembered in memory, so each worker process has its
    own. `store` receives the feedback.
    """

    def __init__(self, store: Callable[[Pending], None]) -> None:
        self._answers: OrderedDict[int, tuple[str, float, int]] = OrderedDict()
        """By conversation: the last request, the time of its answer, and the number of regenerations before it."""
        self._store = store

    def observe(self, trace: Trace) -> None:
        """Processes a finished request. Those of CoE's own commands have no signals; an identical request that the
        cache answers is the habit of a program and no complaint."""
        if (trace.options is not None and trace.options.purpose) or trace.cached is not None:
            return
        now = time.time()
        if trace.client_left and trace.reply is not None and trace.chat is not None and trace.chat.stream:
            self._report("abandoned", trace.request_id, trace, now=now)
        if (key := _conversation_key(trace)) is not None:
            previous, answered, count = self._answers.get(key, ("", -math.inf, 0))
            if not MIN_REGENERATION_SECONDS <= trace.time - answered <= MAX_REGENERATION_SECONDS:
                count = -1
            elif count < MAX_REGENERATIONS:
                self._report("regenerated", previous, trace, now=now)
            self._answers[key] = trace.request_id, now, count + 1
            self._answers.move_to_end(key)
            if len(self._answers) > MAX_CONVERSATIONS:
                self._answers.popitem(last=False)

    def _report(self, kind: FeedbackKind, request_id: str, trace: Trace, *, now: float) -> None:
        caller, event_id = trace.caller, f"{kind}:{trace.request_id}"
        self._store(Pending(Feedback(event_id, request_id, now, kind, tenant=caller.tenant, key=caller.key)))


def _conversation_key(trace: Trace) -> int | None:
    """A hash of an answered conversation and its tenant; None for other requests, and where it was not answered."""
    chat, session = trace.chat, trace.options.session if trace.options else None
    if chat is None or not chat.messages or chat.api == "embeddings":
        return None
    if trace.outcome != "ok" and not (trace.client_left and trace.reply is not None):
        return None
    if session is None and chat.characters < MIN_CHARACTERS:
        return None
    return hash((trace.caller.tenant, session, chat.api, len(chat.messages), chat.characters, trace.routed.text))
