"""Summarizes traffic from pages of records in bounded memory: counts, shares, rates, and samples for drift tests.

`coe.reports.report` uses it for `coe report` and `coe retrain`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from coe.core import PASS_THROUGH_APIS
from coe.errors import Cause
from coe.records.record import RoutingRecord
from coe.trials.drift import TrafficSample

MAX_SAMPLE = 5_000
"""Requests of each side that are kept for drift tests: the first of the reference, the latest of the last day."""
_CAUSES_WITHOUT_FAULT: frozenset[Cause] = frozenset({"rejected", "unsupported", "asleep", "gateway_limit"})
"""Causes that do not count against an expert."""


class SampledRequest(NamedTuple):
    """The part of a request that drift tests read; `category` is an index."""

    category: int
    confidence: float


@dataclass(slots=True)
class Unanswered:
    """Requests of the last hour with one expert as first choice.

    `requests` is their number. `causes` counts those that the expert did not answer, by cause. `latest` is the time of
    the latest unanswered one (Unix seconds).
    """

    requests: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    latest: float = 0.0


@dataclass(slots=True)
class Traffic:
    """Summary of users' requests from their records.

    Counts are of requests since `day` and `hour` (Unix seconds); those of `router` before `day` are the reference of
    drift tests. `own` counts the day's requests of CoE's own commands, which are in no other number. `unanswered` is by
    expert.
    """

    categories: tuple[str, ...]
    router: str
    day: float
    hour: float
    in_hour: int = 0
    own: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    by_category: Counter[str] = field(default_factory=Counter)
    by_expert: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, Unanswered] = field(default_factory=dict)
    first: list[SampledRequest] = field(default_factory=list)
    latest: deque[SampledRequest] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLE))

    def add_own(self, record: RoutingRecord) -> None:
        """Count a request that a CoE command sent."""
        self.own[record.purpose] += record.time >= self.day

    def add(self, record: RoutingRecord) -> None:
        """Count a request of a user."""
        request = None
        if record.category in self.categories and record.api not in PASS_THROUGH_APIS:
            category, confidence = _router_decision(record)
            request = SampledRequest(self.categories.index(category), confidence)
        if record.time < self.day:
            of_router = record.router == self.router and record.probabilities.keys() == set(self.categories)
            if request and of_router and len(self.first) < MAX_SAMPLE:
                self.first.append(request)
            return
        if record.time >= self.hour:
            self.in_hour += 1
            if record.cache != "hit":
                self._count_unanswered(record)
        self.outcomes[record.outcome] += 1
        if request:
            self.reasons[record.reason] += 1
            self.by_category[record.category] += 1
            self.by_expert[record.expert] += 1
            self.latest.append(request)

    def _count_unanswered(self, record: RoutingRecord) -> None:
        if not (first := record.fallback_from or record.expert):
            return
        found = self.unanswered.setdefault(first, Unanswered())
        found.requests += 1
        if record.cause and record.cause not in _CAUSES_WITHOUT_FAULT:
            found.causes[record.cause] += 1
            found.latest = max(found.latest, record.time)

    @property
    def in_day(self) -> int:
        return self.outcomes.total()

    def summary(self) -> Mapping[str, object]:
        """The last day's counts, shares (0 to 1) and quartiles of the confidence; JSON-able."""
        confidence = np.array([one.confidence for one in self.latest])
        failed = self.in_day - self.outcomes["ok"] - self.outcomes["aborted"]
        return {
            "last_hour": self.in_hour,
            "last_day": self.in_day,
            "own": {name: count for name, count in self.own.items() if count},
            "error_rate": failed / max(self.in_day, 1),
            "aborted_rate": self.outcomes["aborted"] / max(self.in_day, 1),
            "reasons": _shares(self.reasons),
            "categories": _shares(self.by_category),
            "experts": _shares(self.by_expert),
            "confidence": np.quantile(confidence, (0.25, 0.5, 0.75)).round(3).tolist() if len(confidence) else None,
        }


def _router_decision(record: RoutingRecord) -> tuple[str, float]:
    """Category and confidence by the router alone: a new rule is not drift."""
    if record.router_probabilities is None:
        return record.category, record.confidence
    category = max(record.router_probabilities, key=record.router_probabilities.__getitem__)
    return category, record.router_probabilities[category] * record.in_distribution


def traffic_sample(requests: Sequence[SampledRequest]) -> TrafficSample:
    """The sample for `detect_drift`."""
    return TrafficSample(
        np.array([one.category for one in requests], dtype=np.int64),
        np.array([one.confidence for one in requests], dtype=np.float64),
    )


def _shares(counts: Counter[str]) -> dict[str, float]:
    return {name: count / counts.total() for name, count in counts.most_common()}
