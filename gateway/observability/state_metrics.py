"""Gauges of the gateway's current state: requests, experts, breakers, versions in use, and the two writers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from coe.experts.outcomes import Incidents
from coe.records import FeedbackWriter, RecordWriter
from gateway.observability.metrics import Metrics
from gateway.request.admission import Admission
from gateway.serving_state import ServingState

ARTIFACT_INFO, RELOAD_FAILED = "coe_artifact_info", "coe_reload_failed"
BREAKER_STATES = {"closed": 0, "rate_limited": 1, "half_open": 2, "open": 3}


class _Replica(Protocol):
    @property
    def address(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def in_flight(self) -> int: ...


class StateMetrics:
    """Reads the serving state when the page is requested, so a reload shows at once."""

    def __init__(self, current: ServingState) -> None:
        self._current = current

    def register(self, metrics: Metrics, admission: Admission) -> None:
        """Adds the gauges that concern all requests."""
        gauge, gauges = metrics.gauge, metrics.gauges
        gauge("coe_requests_in_flight", "Requests in progress.", lambda: admission.in_use)
        gauge("coe_requests_arriving", "Requests whose body has not arrived yet.", lambda: admission.arriving)
        gauge("coe_body_memory_bytes", "Memory held for bodies over 64 KiB.", lambda: admission.body_memory)
        gauge("coe_queue_length", "Requests that wait for a permit.", lambda: admission.queued)
        gauge("coe_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks()))
        router = "1 for the router and declaration in use."
        gauges("coe_router_info", router, ("version", "config"), self._router_info, largest=True)
        versions = "Workers that serve with a version; empty for none, or for the declared assignment."
        gauges(ARTIFACT_INFO, versions, ("kind", "version"), self._artifact_info)
        gauges("coe_expert_in_flight", "Requests at an expert.", ("expert",), self._in_flight)
        states = "0 closed, 1 rate limited (after a 429), 2 half open, 3 open."
        gauges("coe_breaker_state", states, ("expert", "replica"), self._breakers, largest=True)
        failing = "1 while an expert fails for a cause: from the first failure until it answers again without it."
        gauges("coe_expert_failing", failing, ("expert", "cause"), self._failing, largest=True)

    def _router_info(self) -> dict[tuple[str, ...], float]:
        serving = self._current.serving
        return {(serving.composition.router.version, serving.registry.digest): 1}

    def _artifact_info(self) -> dict[tuple[str, ...], float]:
        return {(kind, version or ""): 1 for kind, version in self._current.serving.versions.items()}

    def _replicas(self) -> dict[str, Sequence[_Replica]]:
        experts = self._current.serving.composition.experts
        return {name: getattr(expert, "replicas", ()) for name, expert in experts.items()}

    def _in_flight(self) -> dict[tuple[str, ...], float]:
        return {(name,): sum(replica.in_flight for replica in replicas) for name, replicas in self._replicas().items()}

    def _failing(self) -> dict[tuple[str, ...], float]:
        return {
            (name, cause): 1.0
            for name, expert in self._current.serving.composition.experts.items()
            for cause in _active(expert)
        }

    def _breakers(self) -> dict[tuple[str, ...], float]:
        return {
            (name, replica.address): BREAKER_STATES[replica.state]
            for name, replicas in self._replicas().items()
            for replica in replicas
        }


def _active(expert: object) -> Iterable[str]:
    """The causes for which an expert fails now; none for an expert without incidents."""
    incidents: Incidents | None = getattr(expert, "incidents", None)
    return () if incidents is None else incidents.active


def add_log_metrics(metrics: Metrics, writer: RecordWriter) -> None:
    """Adds the gauges of the routing log's writer."""
    metrics.gauge("coe_log_backlog", "Records that wait to be written.", lambda: writer.backlog)
    dropped = "Records lost: neither log nor spool accepted them."
    metrics.gauge("coe_log_dropped", dropped, lambda: writer.dropped)
    failing = "1 while the routing log cannot be written."
    metrics.gauge("coe_log_failing", failing, lambda: writer.last_error is not None, largest=True)


def add_feedback_metrics(metrics: Metrics, writer: FeedbackWriter) -> None:
    """Adds the gauges of the feedback writer."""
    metrics.gauge("coe_feedback_backlog", "Events of feedback that wait to be written.", lambda: writer.backlog)
    dropped = "Implicit signals lost: neither log nor spool accepted them. A client's feedback gets a 503 instead."
    metrics.gauge("coe_feedback_dropped", dropped, lambda: writer.dropped)
    rejected = "Events rejected after their response, because the request was another tenant's."
    metrics.gauge("coe_feedback_rejected", rejected, lambda: writer.rejected)
    failing = "1 while feedback cannot be written to the log."
    metrics.gauge("coe_feedback_failing", failing, lambda: writer.last_error is not None, largest=True)
