"""Observers of finished requests: metrics, traces, the access log, the routing log, implicit feedback.

`open_observability` opens the first three. Recorder writes the records that `record_of` makes of traces, and
`find_record` reads one back. ImplicitSignals detects implicit feedback. `gateway.main` opens the observers.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from coe.core import Decision, Reason
from coe.records import LogWriter, Pending
from coe.records.feedback import Feedback, FeedbackKind
from coe.records.record import RecipeCall, RoutingLog, RoutingRecord
from coe.registry import MAX_MODEL_CHARACTERS
from coe.routing.composition import NO_RETRIEVAL, Composition
from coe.routing.eligibility import excluded_experts
from coe.settings import Settings
from gateway.observability.logs import log_request
from gateway.observability.metric_workers import share_metrics
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracing, open_tracing
from gateway.request.trace import Trace


@dataclass(frozen=True, slots=True)
class Observability:
    """The metrics, the tracing and the other observers of a worker.

    `observers` are called with every finished request. `tracing` also prepares requests; None if no collector is
    declared.
    """

    metrics: Metrics
    tracing: Tracing | None
    observers: tuple[Callable[[Trace], None], ...]


@asynccontextmanager
async def open_observability(settings: Settings, workers: Path | None) -> AsyncIterator[Observability]:
    """`workers` names this worker's files in the folder that several processes share, None for one process. Raises
    ConfigError if traces cannot be sent."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        if workers is not None:
            await stack.enter_async_context(share_metrics(workers, metrics))
        tracing = await stack.enter_async_context(open_tracing(settings))
        observers: list[Callable[[Trace], None]] = [metrics.observe]
        if tracing is not None:
            observers.append(tracing.observe)
        if settings.access_log:
            observers.append(log_request)
        yield Observability(metrics, tracing, tuple(observers))


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


def record_of(trace: Trace) -> RoutingRecord:
    """The request's record in the routing log. Fields of features that it did not use have their defaults."""
    decision, prediction, usage, options = trace.decision or NO_DECISION, trace.prediction, trace.usage, trace.options
    chat, routed, composition, registry = trace.chat, trace.routed, trace.snapshot.composition, trace.snapshot.registry
    exploration, first_token_ms = registry.policy.exploration, trace.first_token_ms
    record = RoutingRecord(
        request_id=trace.request_id,
        time=trace.time,
        category=decision.category,
        confidence=decision.confidence,
        expert=decision.expert,
        reason=decision.reason,
        fallback_from=decision.fallback_from,
        cause=decision.cause,
        propensity=decision.propensity,
        candidates=decision.candidates,
        probabilities=_named(composition, prediction.probabilities) if prediction is not None else {},
        stage=prediction.stage if prediction is not None else "",
        router=composition.router.version,
        config=registry.digest,
        digest=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() if (text := routed.text) else "",
        outcome=trace.outcome,
        attempts=trace.attempts.count,
        stream=chat.stream if chat else False,
        routing_ms=round(trace.routing_ms, 3),
        first_token_ms=round(first_token_ms, 3) if first_token_ms is not None else None,
        total_ms=round(trace.elapsed_ms(), 3),
        in_distribution=prediction.in_distribution if prediction is not None else 1.0,
        cost_weight=options.cost_weight if options else 0.0,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        session=options.session if options else None,
        api=trace.api,
        tenant=trace.caller.tenant,
        key=trace.caller.key,
        cost=trace.cost,
        unpriced=trace.unpriced,
        dropped=trace.dropped,
        cache=trace.cache.result if trace.cache is not None else "",
        plan=trace.snapshot.plan,
        rule=decision.rule,
        assignment=composition.assignment_digest,
        utility=tuple([round(utility, 4) for utility in decision.utility]),
        price=tuple([round(price, 4) for price in decision.price]),
        exploration=(exploration.rate, exploration.max_quality_loss) if exploration.rate else None,
        needs=tuple(sorted(chat.needs)) if chat else None,
        language=prediction.language if prediction is not None else "",
        purpose=(options.purpose or "") if options else "",
        model=trace.requested_model[:MAX_MODEL_CHARACTERS],
        resolved_model=chat.model[:MAX_MODEL_CHARACTERS] if chat else "",
    )
    return replace(record, **fields) if (fields := _fields_of_features(trace)) else record


def _fields_of_features(trace: Trace) -> dict[str, Any]:
    """The fields of the features that a request used: a key's rule, stored texts, recipes, retrieval, rules."""
    fields: dict[str, Any] = {}
    registry, prediction = trace.snapshot.registry, trace.prediction
    if trace.options is not None and (rule := trace.options.rule) is not None:
        excluded = tuple(excluded_experts(registry, rule))
        fields |= {"only_local": rule.only_local, "limited": True, "excluded": excluded}
    if registry.log.store_prompts and not trace.only_local:
        fields |= {"prompt": trace.routed.text or None, "left_out": tuple(map(str, trace.routed.left_out))}
    if (log := trace.recipe_log) is not None:
        steps = tuple(map(RecipeCall.of, log.calls))
        fields |= {"recipe": log.recipe, "recipe_stop": log.stop, "steps": steps}
    if (result := trace.retrieval_result) is not NO_RETRIEVAL:
        fields |= {"retrieval": result.status, "gate": result.probability, "gain": result.gain}
        fields |= {"passages": tuple([passage.id for passage in result.passages]), "passage_tokens": result.tokens}
        fields["retrieval_ms"] = round(result.ms, 3)
    if prediction is not None and (posterior := prediction.router_probabilities) is not None:
        fields["router_probabilities"] = _named(trace.snapshot.composition, posterior)
    return fields


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


@dataclass(frozen=True, slots=True)
class _LastAnswer:
    """The last answer to a conversation: its request, its time in Unix seconds, and the number of retries before it."""

    request_id: str
    time: float
    retries: int


class ImplicitSignals:
    """Detects implicit feedback in finished requests: a regenerated answer, and an abandoned stream.

    The signals are weak evidence, as a retry or a closed window may have any cause; learning weighs them accordingly
    (`coe/learning/experience.py`). Conversations are remembered in memory, so each worker process has its
    own. `store` receives the feedback.
    """

    def __init__(self, store: Callable[[Pending], None]) -> None:
        self._answers: OrderedDict[int, _LastAnswer] = OrderedDict()
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
            previous, retries = self._answers.get(key), 0
            if previous and MIN_REGENERATION_SECONDS <= trace.time - previous.time <= MAX_REGENERATION_SECONDS:
                retries = previous.retries + 1
                if retries <= MAX_REGENERATIONS:
                    self._report("regenerated", previous.request_id, trace, now=now)
            self._remember(key, _LastAnswer(trace.request_id, now, retries))

    def _report(self, kind: FeedbackKind, request_id: str, trace: Trace, *, now: float) -> None:
        caller, event_id = trace.caller, f"{kind}:{trace.request_id}"
        self._store(Pending(Feedback(event_id, request_id, now, kind, tenant=caller.tenant, key=caller.key)))

    def _remember(self, key: int, answered: _LastAnswer) -> None:
        self._answers[key] = answered
        self._answers.move_to_end(key)
        if len(self._answers) > MAX_CONVERSATIONS:
            self._answers.popitem(last=False)


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
