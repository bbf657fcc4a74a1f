"""Counts metrics in one process, and merges those of several processes into one page in Prometheus's text format.

A MetricRegistry holds counters and histograms, and reads gauges when the page is requested. A snapshot carries all of
them to another process (`metric_workers.py`). The page is written here, because prometheus_client takes several times
as long, and streams would wait for it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal
from uuid import uuid4

import orjson
from prometheus_client.process_collector import ProcessCollector

Labels = tuple[str, ...]
Cells = dict[Labels, list[float]]
"""Label values to numbers: one number, or for a histogram one per bucket (not cumulative), the last for larger values,
and the sum."""


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric with its cells.

    A `live` family counts only while its process lives; others are kept after its end. Over several processes cells are
    added, or with `largest` their maximum is taken.
    """

    name: str
    help_text: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    live: bool = False
    largest: bool = False
    cells: Cells = field(default_factory=dict)

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Increments a counter. Label values must come from a bounded set, as every new combination is kept."""
        if (cell := self.cells.get(labels)) is None:
            self.cells[labels] = [amount]
        else:
            cell[0] += amount

    def observe(self, labels: Labels, seconds: float) -> None:
        """Counts a duration in its bucket."""
        if (cell := self.cells.get(labels)) is None:
            cell = self.cells[labels] = [0.0] * (len(self.bounds) + 2)
        cell[bisect_left(self.bounds, seconds)] += 1
        cell[-1] += seconds


Gauge = tuple[MetricFamily, Callable[[], Mapping[Labels, float]]]


class MetricRegistry:
    """The families of one process. `worker` is its number among its siblings; `gateway` identifies all of them, and
    changes when the counts restart."""

    def __init__(self) -> None:
        self.worker = 0
        self.gateway = uuid4().hex[:8]
        self._lasting: list[MetricFamily] = []
        self._gauges: list[Gauge] = []
        self._process = ProcessCollector(registry=None)

    def counter(self, name: str, help_text: str, labels: Labels = ()) -> MetricFamily:
        return self._add_lasting(MetricFamily(name, help_text, "counter", labels))

    def histogram(self, name: str, help_text: str, bounds: tuple[float, ...], labels: Labels = ()) -> MetricFamily:
        return self._add_lasting(MetricFamily(name, help_text, "histogram", labels, bounds))

    def gauge(
        self, name: str, help_text: str, labels: Labels, values: Callable[[], Mapping[Labels, float]], *, largest: bool
    ) -> None:
        """Adds a gauge whose values are read when the page is requested."""
        self._gauges.append((MetricFamily(name, help_text, "gauge", labels, live=True, largest=largest), values))

    def _add_lasting(self, family: MetricFamily) -> MetricFamily:
        self._lasting.append(family)
        return family

    def families(self) -> list[MetricFamily]:
        """All families now, including the process's own (memory, CPU time, descriptors)."""
        found = list(self._lasting)
        for family, values in self._gauges:
            family.cells.clear()
            family.cells.update({labels: [float(value)] for labels, value in values().items()})
            found.append(family)
        return [*found, *self._of_process()]

    def _of_process(self) -> Iterable[MetricFamily]:
        for metric in self._process.collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            kind: Literal["counter", "gauge"] = "counter" if metric.type == "counter" else "gauge"
            cells: Cells = {(str(self.worker),): [float(metric.samples[0].value)]}
            yield MetricFamily(name, metric.documentation, kind, ("worker",), live=True, cells=cells)

    def snapshot(self) -> bytes:
        """All families as JSON for another process, with their time on the clock that the processes share."""
        families = [{**_as_dict(family), "cells": list(family.cells.items())} for family in self.families()]
        return orjson.dumps({"at": time.monotonic(), "families": families})

    def resume(self, snapshot: bytes) -> None:
        """Adds the counts of an ended process to this one's."""
        before = {family.name: family for family in parse_snapshot(snapshot)}
        for family in self._lasting:
            if (old := before.get(family.name)) and (old.labels, old.bounds) == (family.labels, family.bounds):
                merge_cells(family.cells, old.cells, largest=False)


def snapshot_time(snapshot: bytes) -> float:
    """The time of a snapshot. Raises ValueError if it is invalid."""
    return float(orjson.loads(snapshot)["at"])


def parse_snapshot(snapshot: bytes) -> list[MetricFamily]:
    """The families in a snapshot."""
    families = orjson.loads(snapshot)["families"]
    for family in families:
        family["labels"], family["bounds"] = tuple(family["labels"]), tuple(family["bounds"])
        family["cells"] = {tuple(labels): cell for labels, cell in family["cells"]}
    return [MetricFamily(**family) for family in families]


def merge_cells(cells: Cells, others: Mapping[Labels, list[float]], *, largest: bool) -> None:
    """Adds another process's cells, or takes the maximum."""
    for labels, cell in others.items():
        present = cells.get(labels)
        if present is None:
            cells[labels] = list(cell)
        elif largest:
            cells[labels] = [max(pair) for pair in zip(present, cell, strict=True)]
        else:
            cells[labels] = [sum(pair) for pair in zip(present, cell, strict=True)]


def merged(processes: Iterable[Iterable[MetricFamily]]) -> dict[str, MetricFamily]:
    """The families of all processes together, by name."""
    total: dict[str, MetricFamily] = {}
    for families in processes:
        merge_families(total, families)
    return total


def merge_families(total: dict[str, MetricFamily], families: Iterable[MetricFamily]) -> None:
    """Adds one process's families to `total`."""
    for family in families:
        if family.name in total:
            merge_cells(total[family.name].cells, family.cells, largest=family.largest)
        else:
            total[family.name] = replace(family, cells=dict(family.cells))


def exposition(processes: Iterable[Iterable[MetricFamily]]) -> bytes:
    """The page of all processes together, in Prometheus's text format."""
    return "".join(line for family in merged(processes).values() for line in _family_lines(family)).encode()


def _family_lines(family: MetricFamily) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help_text}\n# TYPE {family.name} {family.kind}\n"
    for values, cell in family.cells.items():
        labels = [f'{name}="{_escaped(value)}"' for name, value in zip(family.labels, values, strict=True)]
        if family.kind == "histogram":
            yield from _histogram_lines(family, labels, cell)
        else:
            yield _line(family.name, labels, cell[0])


def _histogram_lines(family: MetricFamily, labels: list[str], cell: list[float]) -> Iterator[str]:
    *counts, total = cell
    below = 0.0
    for bound, count in zip((*family.bounds, "+Inf"), counts, strict=True):
        below += count
        yield _line(f"{family.name}_bucket", [*labels, f'le="{bound}"'], below)
    yield _line(f"{family.name}_count", labels, below)
    yield _line(f"{family.name}_sum", labels, total)


def _line(name: str, labels: list[str], value: float) -> str:
    return f"{name}{{{','.join(labels)}}} {value}\n" if labels else f"{name} {value}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _as_dict(family: MetricFamily) -> dict[str, object]:
    return {field.name: getattr(family, field.name) for field in fields(family)}
