"""Alarms and drift in `/metrics`: what jobs found in the traffic, and which experts fail now.

The file of the jobs is read when the page is asked for, and only then."""

from __future__ import annotations

from pathlib import Path

from coe.experts.incidents import Incidents
from coe.learning.monitoring.traffic_report import ALARMS, TrafficReport, read_traffic_report
from gateway.observability.metric_registry import Labels
from gateway.observability.metrics import Metrics
from gateway.serving_state import ServingState

Cells = dict[Labels, float]


class TrafficMetrics:
    """The file at `path`, read again where it has changed."""

    def __init__(self, path: Path, current: ServingState) -> None:
        self._path, self._current = path, current
        self._seen: tuple[int, int] | None = None
        self._watch: TrafficReport | None = None

    def show(self, metrics: Metrics) -> None:
        """All of it is the same in every worker. Label values are declared names and fixed words."""
        experts = (
            "1 while an expert takes all requests, gets too few, or is rated worse, as the last look found, "
            "and while it fails now (kind failing)."
        )
        metrics.gauges("coe_alarm", experts, ("kind", "expert"), self._alarms, largest=True)
        shifted = "1 where traffic has moved away from what the router began with, as the last look found."
        metrics.gauges("coe_drift", shifted, ("kind",), self._drift, largest=True)
        proposed = "Kinds of requests that may deserve a category, as the last look found."
        metrics.gauges("coe_proposed_categories", proposed, (), self._proposed, largest=True)
        looked = "When the last look at the traffic was."
        metrics.gauges("coe_traffic_report_timestamp_seconds", looked, (), self._time, largest=True)

    def _alarms(self) -> Cells:
        names = self._current.serving.registry.expert_names
        cells: Cells = {("failing", name): float(self._fails(name)) for name in names}
        if (watch := self._now()) is not None:
            found = [kind for kind in ALARMS if kind != "failing"]
            cells |= {(kind, name): float(name in watch.alarms[kind]) for kind in found for name in names}
        return cells

    def _fails(self, name: str) -> bool:
        """As this process sees it now: the expert fails repeatedly, and has not answered again since."""
        incidents: Incidents | None = getattr(self._current.serving.composition.experts[name], "incidents", None)
        return incidents is not None and incidents.failing

    def _drift(self) -> Cells:
        watch = self._now()
        return {} if watch is None else {(aspect,): float(shifted) for aspect, shifted in watch.drift.items()}

    def _proposed(self) -> Cells:
        watch = self._now()
        return {} if watch is None else {(): float(watch.proposed)}

    def _time(self) -> Cells:
        watch = self._now()
        return {} if watch is None else {(): watch.time}

    def _now(self) -> TrafficReport | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        if (seen := (found.st_ino, found.st_mtime_ns)) != self._seen:
            self._watch, self._seen = read_traffic_report(self._path), seen
        return self._watch
