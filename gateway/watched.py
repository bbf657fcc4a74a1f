"""What jobs found in the traffic, shown in `/metrics`; the file is read when the page is asked for, and only then."""

from __future__ import annotations

from pathlib import Path

from coe.watch import ALARMS, Watch, read_watch
from gateway.current import Current
from gateway.metrics import Metrics
from gateway.tallies import Labels

Cells = dict[Labels, float]


class Watched:
    """The file at `path`, read again where it has changed."""

    def __init__(self, path: Path, current: Current) -> None:
        self._path, self._current = path, current
        self._seen: tuple[int, int] | None = None
        self._watch: Watch | None = None

    def show(self, metrics: Metrics) -> None:
        """All of it is the same in every worker. Label values are declared names and fixed words."""
        experts = "1 while an expert takes all requests, gets too few, or is rated worse, as the last look found."
        metrics.gauges("coe_alarm", experts, ("kind", "expert"), self._alarms, largest=True)
        shifted = "1 where traffic has moved away from what the router began with, as the last look found."
        metrics.gauges("coe_drift", shifted, ("kind",), self._drift, largest=True)
        proposed = "Kinds of requests that may deserve a category, as the last look found."
        metrics.gauges("coe_proposed_categories", proposed, (), self._proposed, largest=True)
        looked = "When the last look at the traffic was."
        metrics.gauges("coe_watch_timestamp_seconds", looked, (), self._time, largest=True)

    def _alarms(self) -> Cells:
        if (watch := self._now()) is None:
            return {}
        names = self._current.serving.registry.expert_names
        return {(kind, name): float(name in watch.alarms[kind]) for kind in ALARMS for name in names}

    def _drift(self) -> Cells:
        watch = self._now()
        return {} if watch is None else {(aspect,): float(shifted) for aspect, shifted in watch.drift.items()}

    def _proposed(self) -> Cells:
        watch = self._now()
        return {} if watch is None else {(): float(watch.proposed)}

    def _time(self) -> Cells:
        watch = self._now()
        return {} if watch is None else {(): watch.time}

    def _now(self) -> Watch | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        if (seen := (found.st_ino, found.st_mtime_ns)) != self._seen:
            self._watch, self._seen = read_watch(self._path), seen
        return self._watch
