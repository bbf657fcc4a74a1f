"""Gauges of the gateway's current state: requests, experts, versions in use, log writers, residency, traffic alarms.

They are read when the page is requested. `open_residency` also connects the process to the residency scheduler of
`coe up`, which loads experts that share a device on demand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from coe.artifacts.traffic_report import ALARMS, TrafficReport, read_traffic_report
from coe.experts.outcomes import Incidents
from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.records import LogWriter
from coe.settings import Settings
from gateway.observability.metrics import Labels, Metrics
from gateway.services import Services

Cells = dict[Labels, float]
ARTIFACT_INFO, RELOAD_FAILED = "coe_artifact_info", "coe_reload_failed"
BREAKER_STATES = {"closed": 0, "rate_limited": 1, "half_open": 2, "open": 3}


def add_state_metrics(metrics: Metrics, services: Services) -> None:
    """Adds the gauges that concern all requests, of the serving state at the time, so that a reload shows at once."""
    gauge, gauges, admission = metrics.gauge, metrics.gauges, services.admission

    def replicas() -> Iterator[tuple[str, Any]]:
        for name, expert in services.snapshot.composition.experts.items():
            yield from ((name, replica) for replica in getattr(expert, "replicas", ()))

    def in_flight() -> Cells:
        cells: Cells = dict.fromkeys(((name,) for name in services.snapshot.composition.experts), 0.0)
        for name, replica in replicas():
            cells[(name,)] += replica.in_flight
        return cells

    def failing() -> Cells:
        experts = services.snapshot.composition.experts.items()
        return {(name, cause): 1.0 for name, expert in experts for cause in getattr(_incidents(expert), "active", ())}

    gauge("coe_requests_in_flight", "Requests in progress.", lambda: admission.in_use)
    gauge("coe_requests_arriving", "Requests whose body has not arrived yet.", lambda: admission.arriving)
    gauge("coe_body_memory_bytes", "Memory held for bodies over 64 KiB.", lambda: admission.body_memory)
    gauge("coe_answer_memory_bytes", "Memory held for answers over 64 KiB.", lambda: services.answers.held)
    gauge("coe_queue_length", "Requests that wait for a permit.", lambda: admission.queued)
    gauge("coe_tasks", "Tasks of the event loop.", lambda: len(asyncio.all_tasks()))
    gauges(
        "coe_router_info",
        "1 for the router and declaration in use.",
        ("version", "config"),
        lambda: {(services.snapshot.composition.router.version, services.snapshot.registry.digest): 1},
        largest=True,
    )
    gauges(
        ARTIFACT_INFO,
        "Workers that serve with a version; empty for none, or for the declared assignment.",
        ("kind", "version"),
        lambda: {(kind, version or ""): 1 for kind, version in services.snapshot.versions.items()},
    )
    gauges("coe_expert_in_flight", "Requests at an expert.", ("expert",), in_flight)
    gauges(
        "coe_breaker_state",
        "0 closed, 1 rate limited (after a 429), 2 half open, 3 open.",
        ("expert", "replica"),
        lambda: {(name, replica.address): BREAKER_STATES[replica.state] for name, replica in replicas()},
        largest=True,
    )
    causes = "1 while an expert fails for a cause: from the first failure until it answers again without it."
    gauges("coe_expert_failing", causes, ("expert", "cause"), failing, largest=True)


def _incidents(expert: object) -> Incidents | None:
    return getattr(expert, "incidents", None)


def add_log_metrics(metrics: Metrics, writer: LogWriter) -> None:
    """Adds the gauges of the writer of records and feedback."""
    metrics.gauge("coe_log_backlog", "Records and feedback that wait to be written.", lambda: writer.backlog)
    dropped = "Records and implicit signals lost: neither log nor spool accepted them."
    metrics.gauge("coe_log_dropped", dropped, lambda: writer.dropped)
    failing = "1 while the routing log and the feedback beside it cannot be written."
    metrics.gauge("coe_log_failing", failing, lambda: writer.last_error is not None, largest=True)
    spool = "1 while the spool, or a log without one, cannot be written: what the log does not accept waits in memory."
    metrics.gauge("coe_log_spool_failing", spool, lambda: writer.spool_error is not None, largest=True)
    rejected = "Events of feedback rejected after their response, because the request was another tenant's."
    metrics.gauge("coe_feedback_rejected", rejected, lambda: writer.rejected)


def add_traffic_metrics(metrics: Metrics, path: Path, services: Services) -> None:
    """Adds the gauges of the traffic report at `path`, which is read again if the file has changed. Their values are
    the same in every worker; label values are declared names and fixed words."""
    read: tuple[tuple[int, int], TrafficReport | None] | None = None

    def report() -> TrafficReport | None:
        nonlocal read
        try:
            found = path.stat()
        except OSError:
            return None
        state = (found.st_ino, found.st_mtime_ns)
        if read is None or read[0] != state:
            read = state, read_traffic_report(path)
        return read[1]

    def alarms() -> Cells:
        snapshot, now = services.snapshot, report()
        experts = snapshot.composition.experts
        cells: Cells = {("failing", name): float(getattr(_incidents(experts[name]), "failing", 0)) for name in experts}
        for kind in ALARMS:
            if now is not None and kind != "failing":
                alarmed = now.alarms[kind]
                names = [one for one in snapshot.registry.model_names if one in experts or one in alarmed]
                cells |= {(kind, name): float(name in alarmed) for name in names}
        return cells

    def drift() -> Cells:
        return {} if (now := report()) is None else {(aspect,): float(one) for aspect, one in now.drift.items()}

    def timestamp() -> Cells:
        return {} if (now := report()) is None else {(): now.time}

    gauges = metrics.gauges
    kinds = "1 while an expert has an alarm of this kind: failing now, others by the last traffic report."
    gauges("coe_alarm", kinds, ("kind", "expert"), alarms, largest=True)
    shifts = "1 if traffic has shifted against the router's first traffic, by the last traffic report."
    gauges("coe_drift", shifts, ("kind",), drift, largest=True)
    stamp = "Unix time of the last traffic report."
    gauges("coe_traffic_report_timestamp_seconds", stamp, (), timestamp, largest=True)


TIER_VALUES = {"stopped": 0, "asleep": 1, "awake": 3}
CHANGING = 2


@asynccontextmanager
async def open_residency(settings: Settings, metrics: Metrics) -> AsyncIterator[ResidencyClient | None]:
    """A connection to the `coe up` that started this gateway; None if all experts are always loaded. The metrics exist
    in either case."""
    if settings.residency_socket is None:
        _add_residency_metrics(metrics, None)
        yield None
        return
    async with connected_client(settings.residency_socket, task_failed=metrics.task_failed) as client:
        _add_residency_metrics(metrics, client)
        client.on_wait = metrics.record_residency_wait
        yield client


def _add_residency_metrics(metrics: Metrics, client: ResidencyClient | None) -> None:
    def states() -> Mapping[str, Mapping[str, Any]]:
        return {} if client is None else client.tiers

    def by_expert(key: str) -> dict[Labels, float]:
        return {(name,): float(state[key]) for name, state in states().items()}

    expert = ("expert",)
    metrics.gauges(
        "coe_expert_tier",
        "0 stopped, 1 asleep, 2 changing, 3 awake; only for experts that share a device.",
        expert,
        lambda: {(name,): TIER_VALUES.get(state["tier"], CHANGING) for name, state in states().items()},
        largest=True,
    )
    metrics.gauges(
        "coe_expert_device",
        "1 for the device that the expert is on, awake or asleep; absent while it is stopped.",
        ("expert", "device"),
        lambda: {(name, state["device"]): 1 for name, state in states().items() if state["device"]},
        largest=True,
    )
    waiting = "Requests that wait until the expert is awake."
    metrics.gauges("coe_expert_waiting", waiting, expert, lambda: by_expert("waiting"), largest=True)
    switches = "Times that the expert's server was woken since the start."
    metrics.gauges("coe_expert_switches", switches, expert, lambda: by_expert("switches"), largest=True)
