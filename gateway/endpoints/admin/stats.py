"""`GET /v1/stats`: the current numbers of the gateway, summed over all workers.

Counters run since the start of the gateway; compare two snapshots for a rate. `GET /v1/experts` shows those of experts.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.registry import Registry
from gateway.endpoints.admin.reports import SharedResult
from gateway.endpoints.handler import json_response
from gateway.observability.metrics import MetricFamily
from gateway.observability.state_metrics import ARTIFACT_INFO, BREAKER_STATES, CHANGING, DEGRADED, TIER_VALUES
from gateway.services import Services

_STATES = {number: word for word, number in BREAKER_STATES.items()}
_TIERS = {number: word for word, number in TIER_VALUES.items()} | {CHANGING: "switching"}
_NOT_FAILURES = ("ok", "aborted")
"""Outcomes of requests that were answered, or that the client cancelled."""


class Counts:
    """Metric families by name, summed over all workers. A missing family counts as empty."""

    def __init__(self, families: Mapping[str, MetricFamily]) -> None:
        self._families = families

    def cells(self, name: str) -> Iterable[tuple[tuple[str, ...], list[float]]]:
        return self._families[name].cells.items() if name in self._families else ()

    def total(self, name: str) -> float:
        return sum(cell[0] for _, cell in self.cells(name))

    def by_label(self, name: str, position: int = 0) -> dict[str, float]:
        """Sums by the label at `position`."""
        found: dict[str, float] = {}
        for labels, cell in self.cells(name):
            found[labels[position]] = found.get(labels[position], 0) + cell[0]
        return found

    def by_two_labels(self, name: str, outer: int, inner: int) -> dict[str, dict[str, float]]:
        """Sums by the labels at `outer` and `inner`."""
        found: dict[str, dict[str, float]] = {}
        for labels, cell in self.cells(name):
            row = found.setdefault(labels[outer], {})
            row[labels[inner]] = row.get(labels[inner], 0) + cell[0]
        return found

    def bounds(self, name: str) -> tuple[float, ...]:
        return self._families[name].bounds if name in self._families else ()

    def buckets(self, name: str, labels: tuple[str, ...]) -> list[int]:
        """Observations in each bucket of a histogram; the last bucket is for values above all bounds."""
        family = self._families.get(name)
        if family is None:
            return []
        empty = [0.0] * (len(family.bounds) + 2)
        return [int(count) for count in family.cells.get(labels, empty)[:-1]]


def stats_of(counts: Counts, registry: Registry) -> dict[str, Any]:
    """The counts, gauges and histograms of `/v1/stats`."""
    name = "coe_requests_total"
    reasons, flows = counts.by_label(name, 4), counts.by_two_labels(name, 1, 2)
    reasons.pop("", None)
    flows.pop("", None)  # requests that ended before they were routed
    memory, cpu = counts.by_label("process_resident_memory_bytes"), counts.by_label("process_cpu_seconds_total")
    started = counts.by_label("process_start_time_seconds")
    return {
        "categories": list(registry.category_names),
        "requests": {
            "total": int(counts.total(name)),
            "apis": _integers(counts.by_label(name, 0)),
            "outcomes": _integers(counts.by_label(name, 3)),
            "reasons": _integers(reasons),
            "flows": {category: _integers(experts) for category, experts in flows.items()},
        },
        "in_flight": int(counts.total("coe_requests_in_flight")),
        "queued": int(counts.total("coe_queue_length")),
        "routing": _histogram(counts, "coe_routing_seconds"),
        "request": _histogram(counts, "coe_request_seconds"),
        "first_byte_bounds": counts.bounds("coe_first_byte_seconds"),
        "experts": [{"id": name, **expert} for name, expert in expert_stats(counts, registry).items()],
        "retrieval": _integers(counts.by_label("coe_retrieval_total")),
        "feedback": _integers(counts.by_label("coe_feedback_total")),
        "log": {
            "backlog": int(counts.total("coe_log_backlog")),
            "dropped": int(counts.total("coe_log_dropped")),
        },
        "warnings": [part for part, fails in counts.by_label(DEGRADED).items() if fails],
        "artifacts": {  # workers that serve each version, and each declaration (config); an empty one means none
            kind: _integers(versions) for kind, versions in counts.by_two_labels(ARTIFACT_INFO, 0, 1).items()
        },
        "workers": [
            {"worker": int(worker), "memory_bytes": int(used), "cpu_seconds": cpu[worker], "started": started[worker]}
            for worker, used in sorted(memory.items(), key=lambda item: int(item[0]))
        ],
    }  # fmt: skip


def expert_stats(counts: Counts, registry: Registry) -> dict[str, dict[str, Any]]:
    """Return requests by outcome, tokens, cost and state of each expert."""
    outcomes = counts.by_two_labels("coe_requests_total", 2, 3)
    replicas = counts.by_two_labels("coe_breaker_state", 0, 1)
    tokens = counts.by_two_labels("coe_tokens_total", 0, 1)
    fallbacks, cost = counts.by_label("coe_fallbacks_total"), counts.by_label("coe_cost_dollars_total")
    in_flight, tiers = counts.by_label("coe_expert_in_flight"), counts.by_label("coe_expert_tier")
    waiting, switches = counts.by_label("coe_expert_waiting"), counts.by_label("coe_expert_switches")
    found = {}
    for name in registry.expert_names:
        found[name] = {
            "outcomes": _integers(outcomes.get(name, {})),
            "fallbacks": int(fallbacks.get(name, 0)),
            "in_flight": int(in_flight.get(name, 0)),
            "replicas": {address: _STATES[int(state)] for address, state in replicas.get(name, {}).items()},
            "first_byte": counts.buckets("coe_first_byte_seconds", (name,)),
            "tokens": _integers(tokens.get(name, {})),
            "cost": round(cost.get(name, 0.0), 6),
        }
        if name in tiers:
            found[name] |= {
                "tier": _TIERS[int(tiers[name])],
                "waiting": int(waiting[name]),
                "switches": int(switches[name]),
            }
    return found


def failed(outcomes: Mapping[str, int]) -> int:
    """The number of failures among `outcomes`."""
    return sum(count for outcome, count in outcomes.items() if outcome not in _NOT_FAILURES)


def _histogram(counts: Counts, name: str) -> dict[str, Any]:
    return {"bounds": counts.bounds(name), "counts": counts.buckets(name, ())}


def _integers(cells: Mapping[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in cells.items()}


class Stats:
    """The numbers; requests at the same time share a snapshot."""

    def __init__(self, services: Services) -> None:
        self._services, self._metrics = services, services.metrics
        self._snapshot = SharedResult(self._take, seconds=0)

    async def get(self, _: Request) -> Response:
        """Current numbers of the gateway, counted since its start."""
        return json_response(await self._snapshot.get())

    async def _take(self) -> bytes:
        found = stats_of(Counts(await self._metrics.families()), self._services.snapshot.registry)
        gateway = {"host": socket.gethostname(), "id": self._metrics.gateway}
        return orjson.dumps({"object": "stats", "time": time.time(), "gateway": gateway, **found})
