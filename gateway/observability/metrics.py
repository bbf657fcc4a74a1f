"""The gateway's metrics, and `GET /metrics` over all workers in Prometheus's text format.

A finished request adds to plain dictionaries of this process; gauges are read when the page is requested. A snapshot
carries all of them to another process (`metric_workers.py`), and prometheus_client writes the page.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, Literal, cast

import orjson
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from coe.records.feedback import FeedbackKind
from gateway.request.trace import Trace

Labels = tuple[str, ...]
Cells = dict[Labels, list[float]]
"""Label values to numbers: one number, or for a histogram one per bucket (not cumulative), the last for larger values,
and the sum."""
Snapshot = dict[str, list[tuple[list[str], list[float]]]]
"""The cells of each metric of a process, by name, as JSON writes them."""
Siblings = Callable[[], Awaitable[list[tuple[Snapshot, bool]]]]
"""The snapshots of every other worker, and whether it runs."""


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
        self.worker = 0
        """The number of this process among its siblings."""
        self.siblings: Siblings | None = None
        """Set if there are several workers."""
        self._lasting: list[MetricFamily] = []
        self._gauges: list[tuple[MetricFamily, Callable[[], Mapping[Labels, float]]]] = []
        self._process = ProcessCollector(registry=None)
        counter, histogram, expert = self.counter, self.histogram, ("expert",)
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

    def counter(self, name: str, help_text: str, labels: Labels = ()) -> MetricFamily:
        """Adds a counter."""
        self._lasting.append(family := MetricFamily(name, help_text, "counter", labels))
        return family

    def histogram(self, name: str, help_text: str, bounds: tuple[float, ...], labels: Labels = ()) -> MetricFamily:
        """Adds a histogram."""
        self._lasting.append(family := MetricFamily(name, help_text, "histogram", labels, bounds))
        return family

    def gauge(self, name: str, help_text: str, value: Callable[[], float], *, largest: bool = False) -> None:
        """Adds a gauge without labels, read when the page is requested; over several workers their sum, or with
        `largest` the maximum."""
        self.gauges(name, help_text, (), lambda: {_NO_LABELS: value()}, largest=largest)

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
        self._gauges.append((MetricFamily(name, help_text, "gauge", labels, live=True, largest=largest), values))

    def own_families(self) -> dict[str, MetricFamily]:
        """The families of this process by name, with the process's own (memory, CPU time, descriptors)."""
        found = [replace(family, cells=dict(family.cells)) for family in self._lasting]
        for family, values in self._gauges:
            cells = {labels: [float(value)] for labels, value in values().items()}
            found.append(replace(family, cells=cells))
        for metric in self._process.collect():
            kind: Literal["counter", "gauge"] = "counter" if metric.type == "counter" else "gauge"
            name = f"{metric.name}_total" if kind == "counter" else metric.name
            cells = {(str(self.worker),): [float(metric.samples[0].value)]}
            found.append(MetricFamily(name, metric.documentation, kind, ("worker",), live=True, cells=cells))
        return {family.name: family for family in found}

    def snapshot(self) -> bytes:
        """The cells of all families as JSON, for another process."""
        return orjson.dumps({name: list(family.cells.items()) for name, family in self.own_families().items()})

    def resume(self, snapshot: bytes) -> None:
        """Adds the counts of an ended process to this one's."""
        before: Snapshot = orjson.loads(snapshot)
        for family in self._lasting:
            family.merge(before.get(family.name, []))

    async def families(self) -> dict[str, MetricFamily]:
        """The families of all workers, by name."""
        snapshots = await self.siblings() if self.siblings else []
        total = self.own_families()
        for snapshot, runs in snapshots:
            for name, rows in snapshot.items():
                if (family := total.get(name)) is not None and (runs or not family.live):
                    family.merge(rows)
            await asyncio.sleep(0)  # one or two milliseconds each: let streams continue in between
        return total

    async def page(self) -> bytes:
        """The families of all workers in Prometheus's text format."""
        return await asyncio.to_thread(exposition, await self.families())
