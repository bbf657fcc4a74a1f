"""Gauges of the gateway's current state: requests, experts, versions in use, log writers, residency, traffic alarms.

They are read when the page is requested. `open_residency` also connects the process to the residency scheduler of
`coe up`, which loads experts that share a device on demand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from coe.artifacts.redis import ALARMS, read_traffic_report
from coe.experts.replicas import Incidents
from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.records import LogWriter
from coe.settings import Settings
from gateway.observability.metrics import Labels, Metrics
from gateway.services import Services

Cells = dict[Labels, float]
ARTIFACT_INFO, DEGRADED = "coe_artifact_info", "coe_degraded"
BREAKER_STATES = {"closed": 0, "rate_limited": 1, "half_open": 2, "open": 3}
TIER_VALUES = {"stopped": 0, "asleep": 1, "awake": 3}
CHANGING = 2


def add_state_metrics(metrics: Metrics, services: Services) -> None:
    """Adds the gauges that concern all requests, of the serving state at the time, so that a reload shows at once."""
    gauge, admission = metrics.gauge, services.admission

    def replicas() -> Iterator[tuple[str, Any]]:
        for name, expert in services.snapshot.composition.experts.items():
            yield from ((name, replica) for replica in getattr(expert, "replicas", ()))

    def in_flight() -> Cells:
        experts = services.snapshot.composition.experts.items()
        return {(name,): sum(one.in_flight for one in getattr(expert, "replicas", ())) for name, expert in experts}

    def failing() -> Cells:
        experts = services.snapshot.composition.experts.items()
        return {(name, cause): 1.0 for name, expert in experts for cause in getattr(_incidents(expert), "active", ())}

    def versions() -> Cells:
        snapshot = services.snapshot
        in_use = {**snapshot.versions, "config": snapshot.registry.digest}
        return {(kind, version or ""): 1 for kind, version in in_use.items()}

    metrics.degraded["reload"] = lambda: services.reload_error is not None
    gauge("coe_requests_in_flight", "Requests in progress.", lambda: admission.in_use)
    gauge("coe_requests_arriving", "Requests whose body has not arrived yet.", lambda: admission.arriving)
    gauge("coe_body_memory_bytes", "Memory held for bodies over 64 KiB.", lambda: admission.body_memory)
    gauge("coe_answer_memory_bytes", "Memory held for answers over 64 KiB.", lambda: services.answers.held)
    gauge("coe_queue_length", "Requests that wait for a permit.", lambda: admission.queued)
    gauge("coe_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks()))
    serving = "Workers that serve with a version of an artifact, empty for none, or a digest of experts.yaml (config)."
    gauge(ARTIFACT_INFO, serving, versions, ("kind", "version"))
    gauge("coe_expert_in_flight", "Requests at an expert.", in_flight, ("expert",))
    gauge(
        "coe_breaker_state",
        "0 closed, 1 rate limited (after a 429), 2 half open, 3 open.",
        lambda: {(name, replica.address): BREAKER_STATES[replica.breaker.state] for name, replica in replicas()},
        ("expert", "replica"),
        largest=True,
    )
    causes = "1 while an expert fails for a cause: from the first failure until it answers again without it."
    gauge("coe_expert_failing", causes, failing, ("expert", "cause"), largest=True)


def _incidents(expert: object) -> Incidents | None:
    return getattr(expert, "incidents", None)


def add_log_metrics(metrics: Metrics, writer: LogWriter) -> None:
    """Adds the gauges of the writer of records and feedback."""
    metrics.degraded["log"] = lambda: writer.last_error is not None
    metrics.degraded["spool"] = lambda: writer.spool_error is not None
    metrics.gauge("coe_log_backlog", "Records and feedback that wait to be written.", lambda: writer.backlog)
    dropped = "Records and implicit signals lost: neither log nor spool accepted them."
    metrics.gauge("coe_log_dropped", dropped, lambda: writer.dropped)
    rejected = "Events of feedback rejected after their response, because the request was another tenant's."
    metrics.gauge("coe_feedback_rejected", rejected, lambda: writer.rejected)


def add_traffic_metrics(metrics: Metrics, path: Path, services: Services) -> None:
    """Adds the alarms about experts, and the gauges of the traffic report at `path`, which are the same in every
    worker. Label values are declared names and fixed words."""

    def alarms() -> Cells:
        snapshot, report = services.snapshot, read_traffic_report(path)
        experts = snapshot.composition.experts
        cells: Cells = {("failing", name): float(getattr(_incidents(experts[name]), "failing", 0)) for name in experts}
        for kind in ALARMS:
            if report is not None and kind != "failing":
                alarmed = report.alarms[kind]
                names = [name for name in snapshot.registry.model_names if name in experts or name in alarmed]
                cells |= {(kind, name): float(name in alarmed) for name in names}
        return cells

    def drift() -> Cells:
        report = read_traffic_report(path)
        return {} if report is None else {(aspect,): float(shifted) for aspect, shifted in report.drift.items()}

    def timestamp() -> Cells:
        return {} if (report := read_traffic_report(path)) is None else {(): report.time}

    kinds = "1 while an expert has an alarm of this kind: failing now, others by the last traffic report."
    metrics.gauge("coe_alarm", kinds, alarms, ("kind", "expert"), largest=True)
    shifts = "1 if traffic has shifted against the router's first traffic, by the last traffic report."
    metrics.gauge("coe_drift", shifts, drift, ("kind",), largest=True)
    stamp = "Unix time of the last traffic report."
    metrics.gauge("coe_traffic_report_timestamp_seconds", stamp, timestamp, largest=True)


@asynccontextmanager
async def open_residency(settings: Settings, metrics: Metrics) -> AsyncIterator[ResidencyClient | None]:
    """A connection to the `coe up` that started this gateway; None if all experts are always loaded. The metrics exist
    in either case."""
    client: ResidencyClient | None = None

    def gauge(name: str, text: str, value: Callable[[Any], float]) -> None:
        def read() -> Cells:
            return {} if client is None else {(expert,): value(state) for expert, state in client.tiers.items()}

        metrics.gauge(name, text, read, ("expert",), largest=True)

    tiers = "0 stopped, 1 asleep, 2 changing, 3 awake; only for experts that share a device."
    gauge("coe_expert_tier", tiers, lambda state: TIER_VALUES.get(state["tier"], CHANGING))
    gauge("coe_expert_waiting", "Requests that wait until the expert is awake.", lambda state: state["waiting"])
    gauge("coe_expert_switches", "Times that its server was woken since the start.", lambda state: state["switches"])
    if settings.residency_socket is None:
        yield None
        return
    async with connected_client(settings.residency_socket, task_failed=metrics.task_failed) as connected:
        client = connected
        client.on_wait = metrics.record_residency_wait
        yield client
