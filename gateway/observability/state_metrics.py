"""Gauges of the gateway's current state: requests, experts, versions in use, log writers, residency, traffic alarms.

They are read when the page is requested. `open_residency` also connects the process to the residency scheduler of
`coe up`, which loads experts that share a device on demand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from coe.artifacts.traffic_report import ALARMS, TrafficReport, read_traffic_report
from coe.experts.outcomes import Incidents
from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.records import LogWriter
from coe.settings import Settings
from gateway.observability.metrics import Labels, Metrics
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
        answers = "Memory held for answers over 64 KiB."
        gauge("coe_answer_memory_bytes", answers, lambda: self._current.answers.held)
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
        experts = self._current.serving.composition.experts
        active = {name: getattr(getattr(expert, "incidents", None), "active", ()) for name, expert in experts.items()}
        return {(name, cause): 1.0 for name, causes in active.items() for cause in causes}

    def _breakers(self) -> dict[tuple[str, ...], float]:
        return {
            (name, replica.address): BREAKER_STATES[replica.state]
            for name, replicas in self._replicas().items()
            for replica in replicas
        }


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


Cells = dict[Labels, float]


class TrafficMetrics:
    """Gauges from the traffic report at `path`, which is read again if the file has changed."""

    def __init__(self, path: Path, current: ServingState) -> None:
        self._path, self._current = path, current
        self._file_state: tuple[int, int] | None = None
        self._report: TrafficReport | None = None

    def register(self, metrics: Metrics) -> None:
        """Adds the gauges. Their values are the same in every worker; label values are declared names and fixed
        words."""
        gauges = metrics.gauges
        alarms = "1 while an expert has an alarm of this kind: failing now, others by the last traffic report."
        gauges("coe_alarm", alarms, ("kind", "expert"), self._alarms, largest=True)
        drift = "1 if traffic has shifted against the router's first traffic, by the last traffic report."
        gauges("coe_drift", drift, ("kind",), self._drift, largest=True)
        proposed = "Groups of requests that may deserve a category, by the last traffic report."
        gauges("coe_proposed_categories", proposed, (), self._proposed, largest=True)
        timestamp = "Unix time of the last traffic report."
        gauges("coe_traffic_report_timestamp_seconds", timestamp, (), self._time, largest=True)

    def _alarms(self) -> Cells:
        serving = self._current.serving
        experts = serving.registry.expert_names
        cells: Cells = {("failing", name): float(self._fails(name)) for name in experts}
        if (report := self._read_report()) is not None:
            found = [kind for kind in ALARMS if kind != "failing"]
            cells |= {(kind, name): float(name in report.alarms[kind]) for kind in found for name in experts}
            arms = [name for name in serving.registry.model_names if name not in experts]
            cells |= {(kind, name): 1.0 for kind in found for name in arms if name in report.alarms[kind]}
        return cells

    def _fails(self, name: str) -> bool:
        """Returns whether this process sees the expert fail repeatedly, without an answer since."""
        incidents: Incidents | None = getattr(self._current.serving.composition.experts[name], "incidents", None)
        return incidents is not None and incidents.failing

    def _drift(self) -> Cells:
        report = self._read_report()
        return {} if report is None else {(aspect,): float(shifted) for aspect, shifted in report.drift.items()}

    def _proposed(self) -> Cells:
        report = self._read_report()
        return {} if report is None else {(): float(report.proposed)}

    def _time(self) -> Cells:
        report = self._read_report()
        return {} if report is None else {(): report.time}

    def _read_report(self) -> TrafficReport | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        if (file_state := (found.st_ino, found.st_mtime_ns)) != self._file_state:
            self._report, self._file_state = read_traffic_report(self._path), file_state
        return self._report


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
    def by_expert(key: str) -> dict[Labels, float]:
        return {(name,): float(state[key]) for name, state in client.tiers.items()} if client else {}

    def tiers() -> dict[Labels, float]:
        if client is None:
            return {}
        return {(name,): float(TIER_VALUES.get(state["tier"], CHANGING)) for name, state in client.tiers.items()}

    def devices() -> dict[Labels, float]:
        found = client.tiers.items() if client else ()
        return {(name, state["device"]): 1.0 for name, state in found if state["device"]}

    expert = ("expert",)
    tier = "0 stopped, 1 asleep, 2 changing, 3 awake; only for experts that share a device."
    metrics.gauges("coe_expert_tier", tier, expert, tiers, largest=True)
    device = "1 for the device that the expert is on, awake or asleep; absent while it is stopped."
    metrics.gauges("coe_expert_device", device, ("expert", "device"), devices, largest=True)
    waiting = "Requests that wait until the expert is awake."
    metrics.gauges("coe_expert_waiting", waiting, expert, lambda: by_expert("waiting"), largest=True)
    switches = "Times that the expert's server was woken since the start."
    metrics.gauges("coe_expert_switches", switches, expert, lambda: by_expert("switches"), largest=True)
