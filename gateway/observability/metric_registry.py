"""Numbers counted in one process, and how those of several become one Prometheus page."""

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
"""By label values: one number, or for a histogram one per bucket (not cumulative), the last for beyond, and the sum."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric's cells. `live` ones count while their process lives; the others are kept when it ends. Over several
    processes cells are added, or the `largest` taken."""

    name: str
    text: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    live: bool = False
    largest: bool = False
    cells: Cells = field(default_factory=dict)

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Count. Label values must come from a bounded set, as each new combination is kept."""
        if (cell := self.cells.get(labels)) is None:
            self.cells[labels] = [amount]
        else:
            cell[0] += amount

    def observe(self, labels: Labels, seconds: float) -> None:
        """Count a duration in its bucket."""
        if (cell := self.cells.get(labels)) is None:
            cell = self.cells[labels] = [0.0] * (len(self.bounds) + 2)
        cell[bisect_left(self.bounds, seconds)] += 1
        cell[-1] += seconds


Gauge = tuple[Family, Callable[[], Mapping[Labels, float]]]


class MetricRegistry:
    """The families of one process. `worker` tells this process from its siblings; `gateway` is the same for all of
    them, and another one when counting begins anew."""

    def __init__(self) -> None:
        self.worker = 0
        self.gateway = uuid4().hex[:8]
        self._lasting: list[Family] = []
        self._gauges: list[Gauge] = []
        self._process = ProcessCollector(registry=None)

    def counter(self, name: str, text: str, labels: Labels = ()) -> Family:
        return self._kept(Family(name, text, "counter", labels))

    def histogram(self, name: str, text: str, bounds: tuple[float, ...], labels: Labels = ()) -> Family:
        return self._kept(Family(name, text, "histogram", labels, bounds))

    def gauge(
        self, name: str, text: str, labels: Labels, values: Callable[[], Mapping[Labels, float]], *, largest: bool
    ) -> None:
        """A number that somebody else keeps, asked for when the page is."""
        self._gauges.append((Family(name, text, "gauge", labels, live=True, largest=largest), values))

    def _kept(self, family: Family) -> Family:
        self._lasting.append(family)
        return family

    def families(self) -> list[Family]:
        """All of them as they stand, the process's own (memory, time, descriptors) among them."""
        found = list(self._lasting)
        for family, values in self._gauges:
            family.cells.clear()
            family.cells.update({labels: [float(value)] for labels, value in values().items()})
            found.append(family)
        return [*found, *self._of_process()]

    def _of_process(self) -> Iterable[Family]:
        for metric in self._process.collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            kind: Literal["counter", "gauge"] = "counter" if metric.type == "counter" else "gauge"
            cells: Cells = {(str(self.worker),): [float(metric.samples[0].value)]}
            yield Family(name, metric.documentation, kind, ("worker",), live=True, cells=cells)

    def snapshot(self) -> bytes:
        """All of them for another process, with the time they were taken, by the clock the processes share."""
        families = [{**_plain(family), "cells": list(family.cells.items())} for family in self.families()]
        return orjson.dumps({"at": time.monotonic(), "families": families})

    def resume(self, snapshot: bytes) -> None:
        """Count on from what an ended process had reached."""
        before = {family.name: family for family in read(snapshot)}
        for family in self._lasting:
            if (old := before.get(family.name)) and (old.labels, old.bounds) == (family.labels, family.bounds):
                merge(family.cells, old.cells, largest=False)


def taken_at(snapshot: bytes) -> float:
    """When a snapshot was taken. Raises ValueError when it is none."""
    return float(orjson.loads(snapshot)["at"])


def read(snapshot: bytes) -> list[Family]:
    """The families in a snapshot."""
    families = orjson.loads(snapshot)["families"]
    for family in families:
        family["labels"], family["bounds"] = tuple(family["labels"]), tuple(family["bounds"])
        family["cells"] = {tuple(labels): cell for labels, cell in family["cells"]}
    return [Family(**family) for family in families]


def merge(cells: Cells, more: Mapping[Labels, list[float]], *, largest: bool) -> None:
    """Take up another process's cells."""
    for labels, cell in more.items():
        known = cells.get(labels)
        if known is None:
            cells[labels] = list(cell)
        elif largest:
            cells[labels] = [max(pair) for pair in zip(known, cell, strict=True)]
        else:
            cells[labels] = [sum(pair) for pair in zip(known, cell, strict=True)]


def joined(processes: Iterable[Iterable[Family]]) -> dict[str, Family]:
    """By name, over all processes together."""
    total: dict[str, Family] = {}
    for families in processes:
        join(total, families)
    return total


def join(total: dict[str, Family], families: Iterable[Family]) -> None:
    """Add one process's to those of others."""
    for family in families:
        if family.name in total:
            merge(total[family.name].cells, family.cells, largest=family.largest)
        else:
            total[family.name] = replace(family, cells=dict(family.cells))


def page(processes: Iterable[Iterable[Family]]) -> bytes:
    """Prometheus's text format, over all processes together."""
    return "".join(line for family in joined(processes).values() for line in _lines(family)).encode()


def _lines(family: Family) -> Iterator[str]:
    """Written here, as Prometheus's own client takes several times as long, and streams would wait for it."""
    yield f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
    for values, cell in family.cells.items():
        labels = [f'{name}="{_escaped(value)}"' for name, value in zip(family.labels, values, strict=True)]
        if family.kind == "histogram":
            yield from _distribution(family, labels, cell)
        else:
            yield _line(family.name, labels, cell[0])


def _distribution(family: Family, labels: list[str], cell: list[float]) -> Iterator[str]:
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


def _plain(family: Family) -> dict[str, object]:
    return {field.name: getattr(family, field.name) for field in fields(family)}
