"""The numbers that the gateway's parts keep themselves, shown in `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from coe.experts.incidents import Incidents
from coe.records import FeedbackWriter, RecordWriter
from gateway.observability.metrics import Metrics
from gateway.request.admission import Admission
from gateway.serving_state import ServingState

ARTIFACTS, RELOAD_FAILED = "coe_artifact_info", "coe_reload_failed"
STATES = {"closed": 0, "resting": 1, "half_open": 2, "open": 3}


class _Replica(Protocol):
    @property
    def address(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def in_flight(self) -> int: ...


class StateMetrics:
    """Everything is looked up when the page is asked for, so a reload shows at once."""

    def __init__(self, current: ServingState) -> None:
        self._current = current

    def show(self, metrics: Metrics, admission: Admission) -> None:
        """What stands for all requests."""
        metrics.gauge("coe_requests_in_flight", "Requests being worked on.", lambda: admission.in_use)
        metrics.gauge("coe_requests_arriving", "Requests whose body is not there yet.", lambda: admission.arriving)
        memory = "Memory held for bodies over 64 KiB."
        metrics.gauge("coe_body_memory_bytes", memory, lambda: admission.body_memory)
        metrics.gauge("coe_queue_length", "Requests that wait for a permit.", lambda: admission.queued)
        metrics.gauge("coe_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks()))
        metrics.gauges("coe_router_info", "1 for what is in use.", ("version", "config"), self._in_use, largest=True)
        versions = "How many workers serve with it; no version is none, or what experts.yaml declares."
        metrics.gauges(ARTIFACTS, versions, ("kind", "version"), self._versions)
        metrics.gauges("coe_expert_in_flight", "Requests at an expert.", ("expert",), self._in_flight)
        metrics.gauges(
            "coe_breaker_state",
            "0 closed, 1 resting after an answer 429, 2 on trial, 3 open.",
            ("expert", "replica"),
            self._breakers,
            largest=True,
        )
        failing = "1 while an expert fails for a cause: from the first failure until it answers again without it."
        metrics.gauges("coe_expert_failing", failing, ("expert", "cause"), self._failing, largest=True)

    def _in_use(self) -> dict[tuple[str, ...], float]:
        serving = self._current.serving
        return {(serving.composition.router.version, serving.registry.digest): 1}

    def _versions(self) -> dict[tuple[str, ...], float]:
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
            (name, replica.address): STATES[replica.state]
            for name, replicas in self._replicas().items()
            for replica in replicas
        }


def _active(expert: object) -> Iterable[str]:
    """Return the causes for which an expert fails now; none for one that keeps no incidents."""
    incidents: Incidents | None = getattr(expert, "incidents", None)
    return () if incidents is None else incidents.active


def show_log(metrics: Metrics, writer: RecordWriter) -> None:
    """How the routing log does."""
    metrics.gauge("coe_log_backlog", "Records waiting to be written.", lambda: writer.backlog)
    metrics.gauge("coe_log_dropped", "Records lost: neither log nor spool took them.", lambda: writer.dropped)
    failing = "1 while the routing log cannot be written."
    metrics.gauge("coe_log_failing", failing, lambda: writer.last_error is not None, largest=True)


def show_feedback(metrics: Metrics, writer: FeedbackWriter) -> None:
    """How the feedback beside the routing log does."""
    metrics.gauge("coe_feedback_backlog", "Events of feedback waiting to be written.", lambda: writer.backlog)
    lost = "Signals lost: neither log nor spool took them. What a client sent is refused with 503 instead."
    metrics.gauge("coe_feedback_dropped", lost, lambda: writer.dropped)
    foreign = "Events rejected after their answer, because the request was another tenant's."
    metrics.gauge("coe_feedback_rejected", foreign, lambda: writer.rejected)
    failing = "1 while feedback cannot be written to the log."
    metrics.gauge("coe_feedback_failing", failing, lambda: writer.last_error is not None, largest=True)
