"""What traffic looks like, from pages of records in bounded memory: counts, shares, rates, and samples for tests."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coe.errors import Cause
from coe.learning.monitoring.drift import TrafficSample
from coe.records.record import RoutingRecord

MAX_SAMPLE = 5_000
"""Requests of each time whose confidence and embedding are kept: the first of the reference, the latest of the rest."""
CONFIDENCE_BINS = 10
_CAUSES_WITHOUT_FAULT: frozenset[Cause] = frozenset({"rejected", "unsupported", "asleep", "hedged", "gateway_limit"})
"""Causes that say nothing against an expert."""

SampledRequest = tuple[int, float, bytes | None, str, str]
"""Category index, confidence, embedding, prompt (empty where the log keeps none) and request id."""


@dataclass(slots=True)
class Unanswered:
    """Requests of the last hour whose first choice was one expert: how many, those that it did not answer by cause, and
    when the latest of these was (Unix seconds)."""

    requests: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    latest: float = 0.0


@dataclass(slots=True)
class Traffic:
    """Records of users' requests that pass through `watched`. Those of the last `day` and `hour` (times, Unix seconds,
    from which on) are counted; those of `router` before the day are the reference that it is compared with. `own`
    counts the day's requests of CoE's own commands, which are in none of the other numbers. `unanswered` is by
    expert."""

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

    def watched(self, pages: Iterable[Sequence[RoutingRecord]]) -> Iterator[Sequence[RoutingRecord]]:
        """The same pages."""
        for page in pages:
            for record in page:
                self._add(record)
            yield page

    def add_own(self, record: RoutingRecord) -> None:
        """Count a request that a CoE command sent."""
        self.own[record.purpose] += record.time >= self.day

    def _add(self, record: RoutingRecord) -> None:
        looked = None
        if record.category in self.categories:
            category, confidence = _router_decision(record)
            kept = record.embedding, record.prompt or "", record.request_id
            looked = self.categories.index(category), confidence, *kept
        if record.time < self.day:
            if looked and record.is_by(self.router, categories=self.categories) and len(self.first) < MAX_SAMPLE:
                self.first.append(looked)
            return
        if record.time >= self.hour:
            self.in_hour += 1
            self._count_unanswered(record)
        self.outcomes[record.outcome] += 1
        if looked:
            self.reasons[record.reason] += 1
            self.by_category[record.category] += 1
            self.by_expert[record.expert] += 1
            self.latest.append(looked)

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
        """Of the last day: counts, shares (0 to 1) and the quartiles of the confidence; JSON-able."""
        confidence = np.array([one[1] for one in self.latest])
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
    """Category and confidence by the router alone: a new overlay is no drift."""
    if record.plain is None:
        return record.category, record.confidence
    category = max(record.plain, key=record.plain.__getitem__)
    return category, record.plain[category] * record.in_distribution


def traffic_sample(looked: Sequence[SampledRequest]) -> TrafficSample:
    """For `drift.watch`; of vectors of different lengths only those as long as the latest one."""
    return TrafficSample(
        np.array([one[0] for one in looked], dtype=np.int64),
        np.array([one[1] for one in looked], dtype=np.float64),
        embeddings(looked)[0],
    )


def comparison(traffic: Traffic) -> Mapping[str, object] | None:
    """The two sides that drift is looked for between, as shares (0 to 1) by category and by tenth of confidence; None
    where one of them is empty. JSON-able."""
    sides = {"before": traffic.first, "now": list(traffic.latest)}
    if not all(sides.values()):
        return None
    return {
        "requests": {name: len(side) for name, side in sides.items()},
        "categories": {
            name: dict(
                zip(traffic.categories, _histogram([one[0] for one in side], len(traffic.categories)), strict=True)
            )
            for name, side in sides.items()
        },
        "confidence": {
            name: _histogram([_confidence_bin(one[1]) for one in side], CONFIDENCE_BINS) for name, side in sides.items()
        },
    }


def _confidence_bin(confidence: float) -> int:
    return min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)


def _histogram(places: Sequence[int], count: int) -> list[float]:
    shares: list[float] = (np.bincount(places, minlength=count) / len(places)).round(5).tolist()
    return shares


def embeddings(looked: Sequence[SampledRequest]) -> tuple[NDArray[np.float32], list[int]]:
    """The vectors (n_embedded, dimensions) that the log keeps, and which of the requests they belong to."""
    kept = [(row, one[2]) for row, one in enumerate(looked) if one[2]]
    if not kept:
        return np.empty((0, 0), dtype=np.float32), []
    size = len(kept[-1][1])
    kept = [(row, vector) for row, vector in kept if len(vector) == size]
    vectors = np.stack([np.frombuffer(vector, dtype=np.float16) for _, vector in kept]).astype(np.float32)
    return vectors, [row for row, _ in kept]


def _shares(counts: Counter[str]) -> dict[str, float]:
    return {name: count / counts.total() for name, count in counts.most_common()}
