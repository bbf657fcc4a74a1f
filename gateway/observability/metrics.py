"""`/metrics`: what Prometheus reads, counted over all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from coe.records.feedback import FeedbackKind
from gateway.observability.metric_registry import Family, Labels, MetricRegistry, join, page
from gateway.observability.metric_workers import Siblings
from gateway.request.trace import Trace

_ROUTING = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_ANSWER = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ALONE: Labels = ()
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Label values are declared names and fixed words, so their number is bounded; a reload may leave old ones."""

    def __init__(self) -> None:
        self.tallies = tallies = MetricRegistry()
        self.siblings: Siblings | None = None
        """Set where there are several workers."""
        requests = ("api", "category", "expert", "outcome", "reason", "status")
        expert = ("expert",)
        self._requests = tallies.counter("coe_requests_total", "Requests, by how they ended.", requests)
        self._fallbacks = tallies.counter(
            "coe_fallbacks_total",
            "Requests that another expert answered, by the one that should have and why it did not.",
            ("expert", "cause"),
        )
        self._tokens = tallies.counter("coe_tokens_total", "Tokens as the experts counted them.", ("expert", "kind"))
        self._cost = tallies.counter("coe_cost_dollars_total", "By the experts' declared prices.", expert)
        self._routing = tallies.histogram("coe_routing_seconds", "From arrival to the decision.", _ROUTING)
        self._first = tallies.histogram("coe_first_byte_seconds", "From arrival to the first piece.", _ANSWER, expert)
        self._upstream = tallies.histogram(
            "coe_upstream_seconds",
            "From asking an expert to its first piece, where it was the first asked.",
            _ANSWER,
            expert,
        )
        self._retrieval = tallies.counter("coe_retrieval_total", "Requests, by what the gate came to.", ("result",))
        self._consulted = tallies.histogram(
            "coe_retrieval_seconds", "Time of consultations, where there were any.", _ROUTING
        )
        self._passages = tallies.counter("coe_retrieval_tokens_total", "Tokens of passages, about.")
        self._feedback = tallies.counter("coe_feedback_total", "Feedback that was kept.", ("kind",))
        self._refused = tallies.counter(
            "coe_refused_total", "Requests refused for their Host or Origin header.", ("outcome",)
        )
        self._task_failures = tallies.counter(
            "coe_background_task_failures_total", "Background tasks that ended unexpectedly and restarted.", ("task",)
        )
        self._hold = tallies.histogram("coe_hold_seconds", "Waits for an expert's turn at its device.", _ANSWER, expert)
        self._total = tallies.histogram("coe_request_seconds", "From arrival to the last byte.", _ANSWER)

    def observe(self, trace: Trace) -> None:
        """Count one finished request."""
        self._total.observe(_ALONE, trace.elapsed_ms() / 1000)
        decision = trace.decision
        status = "" if trace.status is None else str(trace.status)
        if decision is None:
            self._requests.add((trace.api, "", "", trace.outcome, "", status))
            return
        self._requests.add((trace.api, decision.category, decision.expert, trace.outcome, decision.reason, status))
        self._routing.observe(_ALONE, trace.routing_ms / 1000)
        self._gated(trace)
        if (first := trace.first_token_ms) is not None:
            self._answered(trace, (decision.expert,), first)
            if decision.fallback_from:
                self._fallbacks.add((decision.fallback_from, decision.cause))

    def _gated(self, trace: Trace) -> None:
        found = trace.consultation
        self._retrieval.add((found.status,))
        if found.ms:
            self._consulted.observe(_ALONE, found.ms / 1000)
        if found.tokens:
            self._passages.add(_ALONE, found.tokens)

    def _answered(self, trace: Trace, expert: Labels, first_ms: float) -> None:
        self._first.observe(expert, first_ms / 1000)
        if trace.attempts.begun == 1:
            self._upstream.observe(expert, (first_ms - trace.routing_ms) / 1000)
        if (usage := trace.usage) is not None:
            if usage.input_tokens:
                self._tokens.add((*expert, "input"), usage.input_tokens)
            if usage.output_tokens:
                self._tokens.add((*expert, "output"), usage.output_tokens)
        if cost := trace.cost:
            self._cost.add(expert, cost)

    def waited(self, expert: str, seconds: float) -> None:
        """Count one wait for an expert's turn."""
        self._hold.observe((expert,), seconds)

    def refused(self, code: str) -> None:
        """Count one request that was refused for its Host or Origin header."""
        self._refused.add((code,))

    def feedback(self, kind: FeedbackKind) -> None:
        """Count one event that was kept."""
        self._feedback.add((kind,))

    def task_failed(self, name: str) -> None:
        """Count one background task that ended unexpectedly."""
        self._task_failures.add((name,))

    def gauge(self, name: str, text: str, value: Callable[[], float], *, largest: bool = False) -> None:
        """Show a number that somebody else keeps; over several workers their sum, or the `largest`."""
        self.tallies.gauge(name, text, (), lambda: {_ALONE: value()}, largest=largest)

    def gauges(
        self,
        name: str,
        text: str,
        labels: Labels,
        values: Callable[[], Mapping[Labels, float]],
        *,
        largest: bool = False,
    ) -> None:
        """The same for numbers by label values."""
        self.tallies.gauge(name, text, labels, values, largest=largest)

    async def endpoint(self, _: Request) -> Response:
        """`GET /metrics`."""
        return Response(page(await self._processes()), media_type=_TEXT)

    async def families(self) -> dict[str, Family]:
        """By name, over all workers."""
        total: dict[str, Family] = {}
        for families in await self._processes():
            join(total, families)
            await asyncio.sleep(0)  # a millisecond or two each, which streams need not wait for together
        return total

    async def _processes(self) -> list[list[Family]]:
        return [self.tallies.families(), *(await self.siblings() if self.siblings else [])]
