"""The gateway's metrics, and `GET /metrics` over all workers in Prometheus's text format.

A MetricRegistry holds counters and histograms of one process, and reads gauges when the page is requested. A snapshot
carries all of them to another process (`metric_workers.py`). The page is written here, because prometheus_client takes
several times as long, and streams would wait for it.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal
from uuid import uuid4

import orjson
from prometheus_client.process_collector import ProcessCollector

from coe.records.feedback import FeedbackKind
from gateway.request.trace import Trace

Labels = tuple[str, ...]
Cells = dict[Labels, list[float]]
"""Label values to numbers: one number, or for a histogram one per bucket (not cumulative), the last for larger values,
and the sum."""


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric with its cells.

    The values of a `live` family are dropped when its process ends; those of others are kept. Values of several
    processes are added, or with `largest` their maximum is taken.
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


Siblings = Callable[[], Awaitable[list[list[MetricFamily]]]]
"""The families of every other worker, including ended ones."""
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


_ROUTING_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1)
_RESPONSE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_WAIT_BUCKETS = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_NO_LABELS: Labels = ()
MAX_KEY_LABELS = 500
"""API keys with their own time series, the first ones that cost something."""
OTHER_KEYS: Labels = ("(other)",)
EXPOSITION_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts finished requests and events. Label values are declared names and fixed words, so their number is bounded;
    after a reload old values may stay."""

    def __init__(self) -> None:
        self.registry = registry = MetricRegistry()
        self.siblings: Siblings | None = None
        """Set if there are several workers."""
        counter, histogram, expert = registry.counter, registry.histogram, ("expert",)
        requests = ("api", "category", "expert", "outcome", "reason", "status")
        self._requests = counter("coe_requests_total", "Requests, by outcome.", requests)
        fallbacks = "Requests that another expert answered, by the first choice and why it did not answer."
        self._fallbacks = counter("coe_fallbacks_total", fallbacks, ("expert", "cause"))
        self._tokens = counter("coe_tokens_total", "Tokens as the experts counted them.", ("expert", "kind"))
        cached = "Input tokens that the experts read from their prompt caches, a part of coe_tokens_total."
        self._cached_tokens = counter("coe_cached_tokens_total", cached, expert)
        self._cost = counter("coe_cost_dollars_total", "Cost by the experts' declared prices.", expert)
        by_key = "Cost by the experts' declared prices, by API key."
        self._key_cost = counter("coe_key_cost_dollars_total", by_key, ("key",))
        by_category = "Cost by the experts' declared prices, by category."
        self._category_cost = counter("coe_category_cost_dollars_total", by_category, ("category",))
        routing = "Time from arrival to the decision."
        self._routing_seconds = histogram("coe_routing_seconds", routing, _ROUTING_BUCKETS)
        first = "Time from arrival to the first token."
        self._first_token = histogram("coe_first_byte_seconds", first, _RESPONSE_BUCKETS, expert)
        upstream = "Time from the call of an expert to its first token, if it was the first one called."
        self._upstream_seconds = histogram("coe_upstream_seconds", upstream, _RESPONSE_BUCKETS, expert)
        self._retrieval_results = counter("coe_retrieval_total", "Requests, by the result of retrieval.", ("result",))
        self._retrieval_seconds = histogram("coe_retrieval_seconds", "Duration of retrieval.", _ROUTING_BUCKETS)
        self._passage_tokens = counter("coe_retrieval_tokens_total", "Tokens of passages, approximately.")
        lookups = "Requests that used the answer cache, by the result: hit or miss."
        self._cache_lookups = counter("coe_cache_requests_total", lookups, ("result",))
        self._feedback = counter("coe_feedback_total", "Feedback that was stored.", ("kind",))
        unstored = "Answers of the Responses API that could not be stored, by the reason: size or store."
        self._unstored = counter("coe_responses_not_stored_total", unstored, ("reason",))
        refusals = "Requests refused for their Host or Origin header."
        self._refusals = counter("coe_refused_total", refusals, ("outcome",))
        failures = "Background tasks that ended unexpectedly and restarted."
        self._task_failures = counter("coe_background_task_failures_total", failures, ("task",))
        wait = "Waits until an expert that shares a device is awake."
        self._residency_wait = histogram("coe_expert_wait_seconds", wait, _RESPONSE_BUCKETS, expert)
        by_tier = "Waits by the expert's tier at arrival, and whether the request was granted or refused."
        self._tier_wait = histogram("coe_residency_wait_seconds", by_tier, _WAIT_BUCKETS, ("tier", "outcome"))
        total = "Time from arrival to the last byte."
        self._request_seconds = histogram("coe_request_seconds", total, _RESPONSE_BUCKETS)

    def observe(self, trace: Trace) -> None:
        """Counts one finished request."""
        self._request_seconds.observe(_NO_LABELS, trace.elapsed_ms() / 1000)
        if trace.cache is not None:
            self._cache_lookups.add((trace.cache.result,))
        decision = trace.decision
        status = "" if trace.status is None else str(trace.status)
        if decision is None:
            self._requests.add((trace.api, "", "", trace.outcome, "", status))
            return
        self._requests.add((trace.api, decision.category, decision.expert, trace.outcome, decision.reason, status))
        if trace.cached is not None:
            return
        routing_ms = trace.routing_ms
        self._routing_seconds.observe(_NO_LABELS, routing_ms / 1000)
        self._record_retrieval(trace)
        if (first := trace.first_token_ms) is not None:
            self._first_token.observe((decision.expert,), first / 1000)
            if trace.attempts.count == 1:
                self._upstream_seconds.observe((decision.expert,), (first - routing_ms) / 1000)
            if decision.fallback_from:
                self._fallbacks.add((decision.fallback_from, decision.cause))
        if cost := self._record_calls(trace):
            self._category_cost.add((decision.category,), cost)
            self._key_cost.add(self._key_label(trace.caller.key), cost)

    def _key_label(self, key: str | None) -> Labels:
        """The label of an API key; OTHER_KEYS for those beyond MAX_KEY_LABELS."""
        labels = (key or "",)
        known = self._key_cost.cells
        return labels if labels in known or len(known) < MAX_KEY_LABELS else OTHER_KEYS

    def _record_retrieval(self, trace: Trace) -> None:
        retrieval = trace.retrieval_result
        self._retrieval_results.add((retrieval.status,))
        if retrieval.ms:
            self._retrieval_seconds.observe(_NO_LABELS, retrieval.ms / 1000)
        if retrieval.tokens:
            self._passage_tokens.add(_NO_LABELS, retrieval.tokens)

    def _record_calls(self, trace: Trace) -> float:
        """Counts the tokens and dollars of each call. Returns the sum of the dollars that are known."""
        dollars = 0.0
        for call in trace.attempts.sent:
            name, usage, cost = call.expert, call.usage, trace.cost_of(call)
            if usage.input_tokens:
                self._tokens.add((name, "input"), usage.input_tokens)
            if usage.output_tokens:
                self._tokens.add((name, "output"), usage.output_tokens)
            if usage.cached_tokens:
                self._cached_tokens.add((name,), usage.cached_tokens)
            if cost:
                self._cost.add((name,), cost)
                dollars += cost
        return dollars

    def record_residency_wait(self, expert: str, tier: str, outcome: str, seconds: float) -> None:
        """Counts one wait for an expert to be awake; `tier` is its tier at arrival, `outcome` granted or refused."""
        self._tier_wait.observe((tier, outcome), seconds)
        if outcome == "granted":
            self._residency_wait.observe((expert,), seconds)

    def record_refusal(self, code: str) -> None:
        """Counts one request that was refused for its Host or Origin header."""
        self._refusals.add((code,))

    def record_unstored(self, reason: str) -> None:
        """Counts one answer of the Responses API that could not be stored."""
        self._unstored.add((reason,))

    def record_feedback(self, kind: FeedbackKind) -> None:
        """Counts one stored event of feedback."""
        self._feedback.add((kind,))

    def task_failed(self, name: str) -> None:
        """Counts one background task that ended unexpectedly."""
        self._task_failures.add((name,))

    def gauge(self, name: str, help_text: str, value: Callable[[], float], *, largest: bool = False) -> None:
        """Adds a gauge without labels, read when the page is requested; over several workers their sum, or with
        `largest` the maximum."""
        self.registry.gauge(name, help_text, (), lambda: {_NO_LABELS: value()}, largest=largest)

    def gauges(
        self,
        name: str,
        help_text: str,
        labels: Labels,
        values: Callable[[], Mapping[Labels, float]],
        *,
        largest: bool = False,
    ) -> None:
        """Like `gauge`, with labels."""
        self.registry.gauge(name, help_text, labels, values, largest=largest)

    async def page(self) -> bytes:
        """The families of all workers in Prometheus's text format."""
        return exposition(await self._processes())

    async def families(self) -> dict[str, MetricFamily]:
        """The families of all workers, by name."""
        total: dict[str, MetricFamily] = {}
        for families in await self._processes():
            merge_families(total, families)
            await asyncio.sleep(0)  # one or two milliseconds each: let streams continue in between
        return total

    async def _processes(self) -> list[list[MetricFamily]]:
        return [self.registry.families(), *(await self.siblings() if self.siblings else [])]
