"""The gateway's metrics, and `GET /metrics` over all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from coe.records.feedback import FeedbackKind
from gateway.observability.metric_registry import Labels, MetricFamily, MetricRegistry, exposition, merge_families
from gateway.observability.metric_workers import Siblings
from gateway.request.trace import Trace

_ROUTING_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_RESPONSE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NO_LABELS: Labels = ()
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts finished requests and events. Label values are declared names and fixed words, so their number is bounded;
    after a reload old values may stay."""

    def __init__(self) -> None:
        self.registry = registry = MetricRegistry()
        self.siblings: Siblings | None = None
        """Set if there are several workers."""
        counter, histogram, expert = registry.counter, registry.histogram, ("expert",)
        requests = ("api", "category", "expert", "outcome", "reason", "status")
        self._requests = counter("coe_requests_total", "Requests, by outcome.", requests)
        fallbacks = "Requests that another expert answered, by the first choice and why it did not answer."
        self._fallbacks = counter("coe_fallbacks_total", fallbacks, ("expert", "cause"))
        self._tokens = counter("coe_tokens_total", "Tokens as the experts counted them.", ("expert", "kind"))
        self._cost = counter("coe_cost_dollars_total", "Cost by the experts' declared prices.", expert)
        routing = "Time from arrival to the decision."
        self._routing_seconds = histogram("coe_routing_seconds", routing, _ROUTING_BUCKETS)
        first = "Time from arrival to the first token."
        self._first_token = histogram("coe_first_byte_seconds", first, _RESPONSE_BUCKETS, expert)
        upstream = "Time from the call of an expert to its first token, if it was the first one called."
        self._upstream_seconds = histogram("coe_upstream_seconds", upstream, _RESPONSE_BUCKETS, expert)
        self._retrieval_results = counter("coe_retrieval_total", "Requests, by the result of retrieval.", ("result",))
        self._retrieval_seconds = histogram("coe_retrieval_seconds", "Duration of retrieval.", _ROUTING_BUCKETS)
        self._passage_tokens = counter("coe_retrieval_tokens_total", "Tokens of passages, approximately.")
        self._feedback = counter("coe_feedback_total", "Feedback that was stored.", ("kind",))
        refusals = "Requests refused for their Host or Origin header."
        self._refusals = counter("coe_refused_total", refusals, ("outcome",))
        failures = "Background tasks that ended unexpectedly and restarted."
        self._task_failures = counter("coe_background_task_failures_total", failures, ("task",))
        wait = "Waits until an expert that shares a device is awake."
        self._residency_wait = histogram("coe_expert_wait_seconds", wait, _RESPONSE_BUCKETS, expert)
        total = "Time from arrival to the last byte."
        self._request_seconds = histogram("coe_request_seconds", total, _RESPONSE_BUCKETS)

    def observe(self, trace: Trace) -> None:
        """Counts one finished request."""
        self._request_seconds.observe(_NO_LABELS, trace.elapsed_ms() / 1000)
        decision = trace.decision
        status = "" if trace.status is None else str(trace.status)
        if decision is None:
            self._requests.add((trace.api, "", "", trace.outcome, "", status))
            return
        self._requests.add((trace.api, decision.category, decision.expert, trace.outcome, decision.reason, status))
        self._routing_seconds.observe(_NO_LABELS, trace.routing_ms / 1000)
        self._record_retrieval(trace)
        if (first := trace.first_token_ms) is not None:
            self._record_answer(trace, (decision.expert,), first)
            if decision.fallback_from:
                self._fallbacks.add((decision.fallback_from, decision.cause))

    def _record_retrieval(self, trace: Trace) -> None:
        retrieval = trace.retrieval_result
        self._retrieval_results.add((retrieval.status,))
        if retrieval.ms:
            self._retrieval_seconds.observe(_NO_LABELS, retrieval.ms / 1000)
        if retrieval.tokens:
            self._passage_tokens.add(_NO_LABELS, retrieval.tokens)

    def _record_answer(self, trace: Trace, expert: Labels, first_ms: float) -> None:
        self._first_token.observe(expert, first_ms / 1000)
        if trace.attempts.count == 1:
            self._upstream_seconds.observe(expert, (first_ms - trace.routing_ms) / 1000)
        if (usage := trace.usage) is not None:
            if usage.input_tokens:
                self._tokens.add((*expert, "input"), usage.input_tokens)
            if usage.output_tokens:
                self._tokens.add((*expert, "output"), usage.output_tokens)
        if cost := trace.cost:
            self._cost.add(expert, cost)

    def record_residency_wait(self, expert: str, seconds: float) -> None:
        """Counts one wait for an expert to be awake."""
        self._residency_wait.observe((expert,), seconds)

    def record_refusal(self, code: str) -> None:
        """Counts one request that was refused for its Host or Origin header."""
        self._refusals.add((code,))

    def record_feedback(self, kind: FeedbackKind) -> None:
        """Counts one stored event of feedback."""
        self._feedback.add((kind,))

    def task_failed(self, name: str) -> None:
        """Counts one background task that ended unexpectedly."""
        self._task_failures.add((name,))

    def gauge(self, name: str, help_text: str, value: Callable[[], float], *, largest: bool = False) -> None:
        """Adds a gauge without labels, read when the page is requested; over several workers their sum, or with
        `largest` the maximum."""
        self.registry.gauge(name, help_text, (), lambda: {_NO_LABELS: value()}, largest=largest)

    def gauges(
        self,
        name: str,
        help_text: str,
        labels: Labels,
        values: Callable[[], Mapping[Labels, float]],
        *,
        largest: bool = False,
    ) -> None:
        """Like `gauge`, with labels."""
        self.registry.gauge(name, help_text, labels, values, largest=largest)

    async def endpoint(self, _: Request) -> Response:
        """`GET /metrics`."""
        return Response(exposition(await self._processes()), media_type=_CONTENT_TYPE)

    async def families(self) -> dict[str, MetricFamily]:
        """The families of all workers, by name."""
        total: dict[str, MetricFamily] = {}
        for families in await self._processes():
            merge_families(total, families)
            await asyncio.sleep(0)  # one or two milliseconds each: let streams continue in between
        return total

    async def _processes(self) -> list[list[MetricFamily]]:
        return [self.registry.families(), *(await self.siblings() if self.siblings else [])]
