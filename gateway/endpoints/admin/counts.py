"""What `/metrics` counts, as one JSON value that a page can draw: sums over all workers, by what they are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coe.registry import Registry
from gateway.observability.metric_registry import MetricFamily
from gateway.observability.residency import CHANGING, TIER_VALUES
from gateway.observability.state_metrics import ARTIFACT_INFO, BREAKER_STATES

_STATES = {number: word for word, number in BREAKER_STATES.items()}
_TIERS = {number: word for word, number in TIER_VALUES.items()} | {CHANGING: "switching"}
_FINE = ("ok", "aborted")
"""Outcomes that are no failure: an answer came, or the client left."""
_TROUBLES = {
    "reload_failed": "coe_reload_failed",
    "log_failing": "coe_log_failing",
    "limits_degraded": "coe_limits_degraded",
    "artifacts_behind": "coe_artifacts_behind",
}


class Counts:
    """The families of all workers together, by name. A family that is not there counts nothing."""

    def __init__(self, families: Mapping[str, MetricFamily]) -> None:
        self._families = families

    def cells(self, name: str) -> Iterable[tuple[tuple[str, ...], list[float]]]:
        return self._families[name].cells.items() if name in self._families else ()

    def number(self, name: str) -> float:
        return sum(cell[0] for _, cell in self.cells(name))

    def by(self, name: str, place: int = 0) -> dict[str, float]:
        """By the label at that place, summed over the others."""
        found: dict[str, float] = {}
        for labels, cell in self.cells(name):
            found[labels[place]] = found.get(labels[place], 0) + cell[0]
        return found

    def nested(self, name: str, outer: int, inner: int) -> dict[str, dict[str, float]]:
        """By two labels, summed over the others."""
        found: dict[str, dict[str, float]] = {}
        for labels, cell in self.cells(name):
            row = found.setdefault(labels[outer], {})
            row[labels[inner]] = row.get(labels[inner], 0) + cell[0]
        return found

    def bounds(self, name: str) -> tuple[float, ...]:
        return self._families[name].bounds if name in self._families else ()

    def spread(self, name: str, *labels: str) -> list[int]:
        """How often each bucket of a histogram was hit, the last for beyond all bounds."""
        family = self._families.get(name)
        if family is None:
            return []
        cell = family.cells.get(labels)
        return [int(count) for count in cell[:-1]] if cell else [0] * (len(family.bounds) + 1)


def told(counts: Counts, registry: Registry) -> dict[str, Any]:
    """All of it. Counters are since the start of the gateway, for who compares two looks."""
    return {
        "categories": list(registry.category_names),
        "requests": _requests(counts),
        "in_flight": int(counts.number("coe_requests_in_flight")),
        "queued": int(counts.number("coe_queue_length")),
        "routing": _histogram(counts, "coe_routing_seconds"),
        "request": _histogram(counts, "coe_request_seconds"),
        "first_byte_bounds": counts.bounds("coe_first_byte_seconds"),
        "experts": [{"id": name, **expert} for name, expert in experts_told(counts, registry).items()],
        "retrieval": _whole(counts.by("coe_retrieval_total")),
        "feedback": _whole(counts.by("coe_feedback_total")),
        "log": {
            "backlog": int(counts.number("coe_log_backlog")),
            "dropped": int(counts.number("coe_log_dropped")),
        },
        "troubles": [word for word, name in _TROUBLES.items() if counts.number(name)],
        "serving": [
            {"router": router, "config": config} for (router, config), _ in counts.cells("coe_router_info")
        ],
        "artifacts": _artifacts(counts),
        "workers": _workers(counts),
    }  # fmt: skip


def experts_told(counts: Counts, registry: Registry) -> dict[str, dict[str, Any]]:
    """By declared name: what each was asked and how that went."""
    outcomes = counts.nested("coe_requests_total", 2, 3)
    replicas = counts.nested("coe_breaker_state", 0, 1)
    tokens = counts.nested("coe_tokens_total", 0, 1)
    fallbacks, cost = counts.by("coe_fallbacks_total"), counts.by("coe_cost_dollars_total")
    in_flight, tiers = counts.by("coe_expert_in_flight"), counts.by("coe_expert_tier")
    held, switches = counts.by("coe_expert_held"), counts.by("coe_expert_switches")
    found = {}
    for name in registry.expert_names:
        found[name] = {
            "outcomes": _whole(outcomes.get(name, {})),
            "fallbacks": int(fallbacks.get(name, 0)),
            "in_flight": int(in_flight.get(name, 0)),
            "replicas": {address: _STATES[int(state)] for address, state in replicas.get(name, {}).items()},
            "first_byte": counts.spread("coe_first_byte_seconds", name),
            "tokens": _whole(tokens.get(name, {})),
            "cost": round(cost.get(name, 0.0), 6),
        }
        if name in tiers:
            found[name] |= {
                "tier": _TIERS[int(tiers[name])],
                "held": int(held[name]),
                "switches": int(switches[name]),
            }
    return found


def failed(outcomes: Mapping[str, int]) -> int:
    """How many of them are failures."""
    return sum(count for outcome, count in outcomes.items() if outcome not in _FINE)


def _requests(counts: Counts) -> dict[str, Any]:
    """`flows` has the routed ones by category and expert; what ended before it was routed has neither."""
    name = "coe_requests_total"
    reasons, flows = counts.by(name, 4), counts.nested(name, 1, 2)
    reasons.pop("", None)
    flows.pop("", None)
    return {
        "total": int(counts.number(name)),
        "apis": _whole(counts.by(name, 0)),
        "outcomes": _whole(counts.by(name, 3)),
        "reasons": _whole(reasons),
        "flows": {category: _whole(experts) for category, experts in flows.items()},
    }


def _histogram(counts: Counts, name: str) -> dict[str, Any]:
    return {"bounds": counts.bounds(name), "counts": counts.spread(name)}


def _artifacts(counts: Counts) -> dict[str, dict[str, int]]:
    """By kind how many workers serve with each version; no version is an empty one."""
    return {kind: _whole(versions) for kind, versions in counts.nested(ARTIFACT_INFO, 0, 1).items()}


def _workers(counts: Counts) -> list[dict[str, Any]]:
    memory, cpu = counts.by("process_resident_memory_bytes"), counts.by("process_cpu_seconds_total")
    started = counts.by("process_start_time_seconds")
    return [
        {"worker": int(worker), "memory_bytes": int(bytes_), "cpu_seconds": cpu[worker], "started": started[worker]}
        for worker, bytes_ in sorted(memory.items(), key=lambda item: int(item[0]))
    ]


def _whole(cells: Mapping[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in cells.items()}
