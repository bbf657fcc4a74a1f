"""Prometheus metrics of one gateway process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from gateway.trace import Trace

_ROUTING = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_ANSWER = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Own collector registry, so that two apps in one process do not meet. Labels come from declared names only."""

    def __init__(self) -> None:
        self._collectors = CollectorRegistry()
        labels = ("category", "expert", "reason", "outcome")
        self._requests = Counter("coe_requests_total", "Chat requests.", labels, registry=self._collectors)
        self._routing = self._histogram("coe_routing_seconds", "From arrival to the decision.", _ROUTING)
        self._first = self._histogram("coe_first_piece_seconds", "From arrival to the first piece.", _ANSWER)
        self._total = self._histogram("coe_request_seconds", "From arrival to the last byte.", _ANSWER)
        self._fallbacks = Counter("coe_fallbacks_total", "Attempts after the first.", registry=self._collectors)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._collectors)

    def observe(self, trace: Trace) -> None:
        """Count one finished request."""
        decision = trace.decision
        labels = (decision.category, decision.expert, decision.reason) if decision else ("", "", "")
        self._requests.labels(*labels, trace.outcome).inc()
        if decision:
            self._routing.observe(trace.routing_ms / 1000)
        if trace.first_piece_ms is not None:
            self._first.observe(trace.first_piece_ms / 1000)
        if trace.attempts > 1:
            self._fallbacks.inc(trace.attempts - 1)
        self._total.observe(trace.elapsed_ms() / 1000)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a number that somebody else keeps."""
        Gauge(name, text, registry=self._collectors).set_function(value)

    async def endpoint(self, _: Request) -> Response:
        """`GET /metrics`."""
        return Response(generate_latest(self._collectors), media_type=CONTENT_TYPE_LATEST)
