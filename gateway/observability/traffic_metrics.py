"""Gauges of alarms and drift: what jobs found in the traffic, and which experts fail now.

The report file of the jobs is read only when the page is requested.
"""

from __future__ import annotations

from pathlib import Path

from coe.experts.outcomes import Incidents
from coe.learning.monitoring.traffic_report import ALARMS, TrafficReport, read_traffic_report
from gateway.observability.metric_registry import Labels
from gateway.observability.metrics import Metrics
from gateway.serving_state import ServingState

Cells = dict[Labels, float]


class TrafficMetrics:
    """The report at `path`, read again if the file changed."""

    def __init__(self, path: Path, current: ServingState) -> None:
        self._path, self._current = path, current
        self._file_state: tuple[int, int] | None = None
        self._report: TrafficReport | None = None

    def register(self, metrics: Metrics) -> None:
        """Adds the gauges. Their values are the same in every worker; label values are declared names and fixed
        words."""
        gauges = metrics.gauges
        alarms = (
            "1 while an expert gets all requests, gets too few, or is rated worse, by the last traffic report, "
            "and while it fails now (kind failing)."
        )
        gauges("coe_alarm", alarms, ("kind", "expert"), self._alarms, largest=True)
        drift = "1 if traffic has moved away from the router's training data, by the last traffic report."
        gauges("coe_drift", drift, ("kind",), self._drift, largest=True)
        proposed = "Groups of requests that may deserve a category, by the last traffic report."
        gauges("coe_proposed_categories", proposed, (), self._proposed, largest=True)
        timestamp = "Unix time of the last traffic report."
        gauges("coe_traffic_report_timestamp_seconds", timestamp, (), self._time, largest=True)

    def _alarms(self) -> Cells:
        experts = self._current.serving.registry.expert_names
        cells: Cells = {("failing", name): float(self._fails(name)) for name in experts}
        if (report := self._read_report()) is not None:
            found = [kind for kind in ALARMS if kind != "failing"]
            cells |= {(kind, name): float(name in report.alarms[kind]) for kind in found for name in experts}
        return cells

    def _fails(self, name: str) -> bool:
        """Whether this process sees the expert fail repeatedly, without an answer since."""
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
