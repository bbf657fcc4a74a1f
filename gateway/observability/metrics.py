"""The gateway's metrics, and `GET /metrics` over all workers in Prometheus's text format.

A finished request adds to plain dictionaries of this process; gauges are read when the page is requested. A snapshot
carries all of them to another process (`metric_workers.py`), and prometheus_client writes the page.

Shares metrics between the worker processes of one gateway, so that any worker can serve `/metrics` for all workers.

Each worker stores its metrics in a file of a shared folder every few seconds, and when it shows them. A worker that
replaces an ended one continues from that file, so totals never fall; a killed worker loses what it counted since.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import orjson
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from coe.supervision import supervised
from gateway.request.trace import Trace

Labels = tuple[str, ...]
Cells = dict[Labels, list[float]]
"""Label values to numbers: one number, or for a histogram one per bucket (not cumulative), the last for larger values,
and the sum."""
Snapshot = dict[str, list[tuple[list[str], list[float]]]]
"""The cells of each metric of a process, by name, as JSON writes them."""
Gauged = float | Mapping[Labels, float]
"""The values of a gauge by label values, or its one value."""


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric with its cells: a histogram if it has bounds, else a counter if its name ends in `_total`, else a
    gauge.

    Gauges of a process are dropped when it ends; other values are kept. Values of several processes are added, or with
    `largest` their maximum is taken.
    """

    name: str
    help_text: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    largest: bool = False
    cells: Cells = field(default_factory=dict)

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        return "histogram" if self.bounds else "counter" if self.name.endswith("_total") else "gauge"

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

    def merge(self, rows: list[tuple[list[str], list[float]]]) -> None:
        """Adds the cells of another process, or takes the maximum."""
        combine: Callable[[tuple[float, float]], float] = max if self.largest else sum
        for values, cell in rows:
            present = self.cells.get(labels := tuple(values))
            pairs = cell if present is None else [combine(pair) for pair in zip(present, cell, strict=True)]
            self.cells[labels] = pairs

    def exposed(self) -> Metric:
        """The metric as prometheus_client writes it."""
        if self.kind != "histogram":
            plain = (CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily)(
                self.name, self.help_text, labels=self.labels
            )
            for labels, cell in self.cells.items():
                plain.add_metric(labels, cell[0])
            return plain
        metric = HistogramMetricFamily(self.name, self.help_text, labels=self.labels)
        bounds = [*map(str, self.bounds), "+Inf"]
        for labels, (*counts, total) in self.cells.items():
            metric.add_metric(labels, buckets=list(zip(bounds, accumulate(counts), strict=True)), sum_value=total)
        return metric


def exposition(families: Mapping[str, MetricFamily]) -> bytes:
    """The page in Prometheus's text format."""
    collector = SimpleNamespace(collect=lambda: [family.exposed() for family in families.values()])
    return generate_latest(cast(Any, collector))


_ROUTING_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_RESPONSE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_WAITED = "Waits until an expert that shares a device is awake, by its tier at arrival: granted or refused."
_UPSTREAM = "Time from the call of an expert to its first token, if it was the first one called."
_LASTING: tuple[tuple[str, str, Labels, tuple[float, ...]], ...] = (
    ("coe_requests_total", "Requests, by outcome.", ("api", "category", "expert", "outcome", "reason", "status"), ()),
    ("coe_fallbacks_total", "Answers of another expert than the first choice, and why.", ("expert", "cause"), ()),
    ("coe_tokens_total", "Tokens as the experts counted them.", ("expert", "kind"), ()),
    ("coe_cached_tokens_total", "Input tokens from prompt caches, a part of coe_tokens_total.", ("expert",), ()),
    ("coe_cost_dollars_total", "Cost by the experts' declared prices.", ("expert",), ()),
    ("coe_routing_seconds", "Time from arrival to the decision.", (), _ROUTING_BUCKETS),
    ("coe_first_byte_seconds", "Time from arrival to the first token.", ("expert",), _RESPONSE_BUCKETS),
    ("coe_upstream_seconds", _UPSTREAM, ("expert",), _RESPONSE_BUCKETS),
    ("coe_request_seconds", "Time from arrival to the last byte.", (), _RESPONSE_BUCKETS),
    ("coe_retrieval_total", "Requests, by the result of retrieval.", ("result",), ()),
    ("coe_cache_requests_total", "Requests that used the answer cache: hit or miss.", ("result",), ()),
    ("coe_feedback_total", "Feedback that was stored.", ("kind",), ()),
    ("coe_responses_not_stored_total", "Answers of the Responses API not stored: size or store.", ("reason",), ()),
    ("coe_refused_total", "Requests refused for their Host or Origin header.", ("outcome",), ()),
    ("coe_background_task_failures_total", "Background tasks that ended unexpectedly and restarted.", ("task",), ()),
    ("coe_residency_wait_seconds", _WAITED, ("expert", "tier", "outcome"), _RESPONSE_BUCKETS),
)
"""Counters and histograms: name, text, labels, and the bounds of a histogram."""


class Metrics:
    """Counts finished requests and events. Label values are declared names and fixed words, so their number is bounded;
    after a reload old values may stay."""

    def __init__(self) -> None:
        self.worker = self.crashes = 0
        """The number of this process among its siblings, and how often its predecessors crashed."""
        self.siblings: Callable[[], list[tuple[Snapshot, bool]]] = list
        """The snapshots of every other worker, and whether it runs."""
        self.degraded: dict[str, Callable[[], bool]] = {}
        """Parts that can fail while the gateway serves on, and whether each fails now."""
        self._lasting = {name: MetricFamily(name, text, labels, bounds) for name, text, labels, bounds in _LASTING}
        self._gauges: list[tuple[MetricFamily, Callable[[], Gauged]]] = []
        self._process = ProcessCollector(registry=None)
        crashes = "Unexpected exits of a worker process since the gateway started."
        self.gauge("coe_worker_crashes", crashes, lambda: {(str(self.worker),): self.crashes}, ("worker",))
        text, parts = "1 while a part fails or cannot be reached; the gateway serves on without it.", self.degraded
        self.gauge("coe_degraded", text, lambda: {(part,): parts[part]() for part in parts}, ("part",), largest=True)

    def observe(self, trace: Trace) -> None:
        """Counts one finished request."""
        families, decision = self._lasting, trace.decision
        families["coe_request_seconds"].observe((), trace.elapsed_ms() / 1000)
        if trace.cache is not None:
            families["coe_cache_requests_total"].add((trace.cache.result,))
        chosen = ("", "", "") if decision is None else (decision.category, decision.expert, decision.reason)
        (category, expert, reason), status = chosen, "" if trace.status is None else str(trace.status)
        families["coe_requests_total"].add((trace.api, category, expert, trace.outcome, reason, status))
        if decision is None or trace.cached is not None:
            return
        routing_ms = trace.routing_ms
        families["coe_routing_seconds"].observe((), routing_ms / 1000)
        families["coe_retrieval_total"].add((trace.retrieval_result.status,))
        if (first := trace.first_token_ms) is not None:
            families["coe_first_byte_seconds"].observe((expert,), first / 1000)
            if trace.attempts.count == 1:
                families["coe_upstream_seconds"].observe((expert,), (first - routing_ms) / 1000)
            if decision.fallback_from:
                families["coe_fallbacks_total"].add((decision.fallback_from, decision.cause))
        for call in trace.attempts.sent:
            name, usage = call.expert, call.usage
            if usage.input_tokens:
                families["coe_tokens_total"].add((name, "input"), usage.input_tokens)
            if usage.output_tokens:
                families["coe_tokens_total"].add((name, "output"), usage.output_tokens)
            if usage.cached_tokens:
                families["coe_cached_tokens_total"].add((name,), usage.cached_tokens)
            if cost := trace.cost_of(call):
                families["coe_cost_dollars_total"].add((name,), cost)

    def count(self, name: str, *labels: str) -> None:
        """Increments a counter."""
        self._lasting[name].add(labels)

    def task_failed(self, name: str) -> None:
        """Counts one background task that ended unexpectedly."""
        self.count("coe_background_task_failures_total", name)

    def record_residency_wait(self, expert: str, tier: str, outcome: str, seconds: float) -> None:
        """Counts one wait for an expert to be awake; `tier` is its tier at arrival, `outcome` granted or refused."""
        self._lasting["coe_residency_wait_seconds"].observe((expert, tier, outcome), seconds)

    def gauge(
        self, name: str, help_text: str, read: Callable[[], Gauged], labels: Labels = (), *, largest: bool = False
    ) -> None:
        """Adds a gauge, which `read` reads when the page is requested: values by label values, or one value. Over
        several workers it shows their sum, or with `largest` the maximum."""
        self._gauges.append((MetricFamily(name, help_text, labels, largest=largest), read))

    def own_families(self) -> dict[str, MetricFamily]:
        """The families of this process by name, with the process's own (memory, CPU time, descriptors)."""
        found = [replace(family, cells=dict(family.cells)) for family in self._lasting.values()]
        for family, read in self._gauges:
            values = read()
            by_label = values if isinstance(values, Mapping) else {(): values}
            found.append(replace(family, cells={labels: [float(value)] for labels, value in by_label.items()}))
        for metric in self._process.collect():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            cells: Cells = {(str(self.worker),): [float(metric.samples[0].value)]}
            found.append(MetricFamily(name, metric.documentation, ("worker",), cells=cells))
        return {family.name: family for family in found}

    def snapshot(self) -> bytes:
        """The cells of all families as JSON, for another process."""
        return orjson.dumps({name: list(family.cells.items()) for name, family in self.own_families().items()})

    def resume(self, stored: Path) -> None:
        """Adds the counts of an ended process, which stored a snapshot, to this one's."""
        with suppress(OSError, ValueError):
            before: Snapshot = orjson.loads(stored.read_bytes())
            for family in self._lasting.values():
                family.merge(before.get(family.name, []))

    async def families(self) -> dict[str, MetricFamily]:
        """The families of all workers, by name."""
        total = self.own_families()
        for snapshot, runs in self.siblings():
            for name, rows in snapshot.items():
                if (family := total.get(name)) is not None and (runs or family.kind != "gauge"):
                    family.merge(rows)
            await asyncio.sleep(0)  # one or two milliseconds each: let streams continue in between
        return total

    async def page(self) -> bytes:
        """The families of all workers in Prometheus's text format."""
        return await asyncio.to_thread(exposition, await self.families())


STORE_SECONDS = 1.0
"""Interval in which a worker stores its metrics: what it counted since is missing on the pages of the others."""
FRESH_SECONDS = 10.0
"""Age from which a worker counts as ended or frozen, so that its gauges are left out."""


@asynccontextmanager
async def share_metrics(own: Path, metrics: Metrics) -> AsyncIterator[None]:
    """Joins the workers whose files are in the same folder as `own`, which is named by the number of this worker."""
    metrics.worker = int(own.name)
    metrics.resume(own)

    def store() -> None:
        draft = own.with_suffix(".draft")
        with suppress(OSError):  # the disk is full
            draft.write_bytes(metrics.snapshot())
            draft.replace(own)

    def read_siblings() -> list[tuple[Snapshot, bool]]:
        store()  # what this worker is about to show
        siblings = []
        for path in own.parent.iterdir():
            if path.name.isdecimal() and path != own:
                is_fresh = time.time() - path.stat().st_mtime < FRESH_SECONDS
                siblings.append((orjson.loads(path.read_bytes()), is_fresh))
        return siblings

    async def run() -> None:
        while True:
            store()
            await asyncio.sleep(STORE_SECONDS)

    metrics.siblings = read_siblings
    task = supervised(run, "metrics", task_failed=metrics.task_failed)
    try:
        yield
    finally:
        task.cancel()
        store()
