"""Traffic, errors, latency, satisfaction and cost over time, from a bounded sample of the routing log.

A period is divided into buckets. A bucket of more than MAX_SAMPLE records is read in parts: one page of each, whose
records count for all of the part, as counted by the log. So the cost of a report does not grow with the traffic. All
requests count, also those of CoE's own commands. `coe history` and `GET /v1/history` report it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, get_args

from coe.learning.estimation.experience import RATING_KINDS, precedence, reward
from coe.learning.estimation.experience_loader import Logs
from coe.records.feedback import Feedback
from coe.records.record import RoutingRecord

Dimension = Literal["expert", "category", "key"]
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
Period = Literal["1h", "1d", "7d"]
BUCKETS: Mapping[Period, tuple[int, int]] = {"1h": (60, 60), "1d": (48, 1800), "7d": (56, 10_800)}
"""Number and seconds of the buckets of each period."""
MAX_SAMPLE = 500
"""Most records of a bucket that are all read (docs/experiments/log-queries.md)."""
PARTS = 5
"""Parts of equal length that a bucket of more records is divided into."""
PAGE_SIZE = 100
"""Records read at a time."""
MAX_NAMES = 12
"""Experts, categories or keys of a report, including OTHER for the rest."""
OTHER = "(other)"


@dataclass(slots=True)
class Sums:
    """Requests of one bucket: all of them, or those of one expert, category or key.

    `unpriced` are requests of partly unknown cost. `first_tokens` are pairs of milliseconds and weight.
    """

    requests: float = 0.0
    failed: float = 0.0
    dollars: float = 0.0
    unpriced: float = 0.0
    ratings: int = 0
    rewards: float = 0.0
    first_tokens: list[tuple[float, float]] = field(default_factory=list)

    def add(self, record: RoutingRecord, weight: float) -> None:
        """Add a record that stands for `weight` requests."""
        answered, is_free = record.outcome in ("ok", "aborted"), record.cache == "hit"
        self.requests += weight
        self.failed += 0.0 if answered else weight
        self.dollars += 0.0 if is_free else (record.cost or 0.0) * weight
        is_unknown = record.unpriced > 0 or (answered and not is_free and record.cost is None)
        self.unpriced += weight if is_unknown else 0.0
        if record.first_token_ms is not None:
            self.first_tokens.append((record.first_token_ms, weight))

    def merge(self, other: Sums) -> None:
        """Add the sums of another name."""
        for name in (*_COUNTS, "rewards"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_tokens += other.first_tokens

    def report(self) -> dict[str, float | None]:
        """Return the sums, JSON-able. `satisfaction` is the mean rating, 0 to 1, None without ratings."""
        times = sorted(self.first_tokens)
        return {name: getattr(self, name) for name in _COUNTS} | {
            "satisfaction": self.rewards / self.ratings if self.ratings else None,
            "first_token_p50_ms": _quantile(times, 0.5),
            "first_token_p95_ms": _quantile(times, 0.95),
        }


_COUNTS = ("requests", "failed", "dollars", "unpriced", "ratings")


def _quantile(ordered: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return the first value up to which more than `share` of the weight lies; None without values."""
    left = share * sum(weight for _, weight in ordered)
    for value, weight in ordered:
        left -= weight
        if left < 0:
            return value
    return ordered[-1][0] if ordered else None


class TrafficHistory:
    """The sums of each bucket and its names. `start` is in Unix seconds, `seconds` the length of a bucket."""

    def __init__(self, start: float, *, count: int, seconds: int) -> None:
        self.start, self.count, self.seconds = start, count, seconds
        self._sums = [dict[tuple[str, str], Sums]() for _ in range(count)]
        self._sampled = set[int]()
        self._rated: dict[tuple[str, str | None], tuple[int, RoutingRecord]] = {}
        self._ratings: dict[tuple[str, str | None], Feedback] = {}

    def add(self, record: RoutingRecord, weight: float = 1.0) -> None:
        """Add a record of the period that stands for `weight` requests; a second time, it changes nothing."""
        index = math.floor((record.time - self.start) / self.seconds)
        key = record.request_id, record.tenant
        if not 0 <= index < self.count or key in self._rated:
            return
        for place in _places(record):
            self._sums[index].setdefault(place, Sums()).add(record, weight)
        self._rated[key] = index, record
        if weight != 1.0:
            self._sampled.add(index)

    def rate(self, pages: Iterable[Sequence[Feedback]]) -> None:
        """Keep the most reliable and then latest rating of each request that was added."""
        for event in (event for page in pages for event in page):
            key = event.request_id, event.tenant
            if event.kind in RATING_KINDS and key in self._rated:
                known = self._ratings.get(key, event)
                self._ratings[key] = max(known, event, key=precedence)

    def report(self) -> dict[str, Any]:
        """Return the buckets, oldest first, and the names of each dimension, the busiest first."""
        self._add_ratings()
        names = {dimension: self._names(dimension) for dimension in DIMENSIONS}
        return {
            "start": self.start,
            "seconds": self.seconds,
            "names": names,
            "buckets": [self._bucket(index, names) for index in range(self.count)],
            "sampled": len(self._sampled),
        }

    def _add_ratings(self) -> None:
        for key, event in self._ratings.items():
            index, record = self._rated[key]
            for place in _places(record):
                sums = self._sums[index][place]
                sums.ratings += 1
                sums.rewards += reward(event, expert=record.expert)
        self._ratings = {}

    def _names(self, dimension: Dimension) -> list[str]:
        counts = defaultdict[str, float](float)
        for bucket in self._sums:
            for (kind, name), sums in bucket.items():
                if kind == dimension:
                    counts[name] += sums.requests
        ordered = sorted(counts, key=lambda name: -counts[name])
        return ordered if len(ordered) <= MAX_NAMES else [*ordered[: MAX_NAMES - 1], OTHER]

    def _bucket(self, index: int, names: Mapping[Dimension, Sequence[str]]) -> dict[str, Any]:
        found: dict[str, Any] = {"sampled": index in self._sampled}
        found["total"] = self._sums[index].get(_TOTAL, Sums()).report()
        for dimension in DIMENSIONS:
            by_name: dict[str, Sums] = {}
            for (kind, name), sums in self._sums[index].items():
                if kind == dimension:
                    by_name.setdefault(name if name in names[dimension] else OTHER, Sums()).merge(sums)
            found[dimension] = {name: sums.report() for name, sums in by_name.items()}
        return found


def read_history(logs: Logs, history: TrafficHistory) -> None:
    """Fill a history from the logs. A bucket of more than MAX_SAMPLE records is sampled."""
    cursors = [logs.cursor_at(history.start + index * history.seconds) for index in range(history.count + 1)]
    for index, (after, before) in enumerate(pairwise(cursors)):
        count = logs.count(after, before)
        if count <= MAX_SAMPLE:
            _read_all(logs, history, after, count)
        else:
            begin, step = history.start + index * history.seconds, history.seconds / PARTS
            inner = [logs.cursor_at(begin + part * step) for part in range(1, PARTS)]
            for first, last in pairwise([after, *inner, before]):
                _read_sample(logs, history, first, logs.count(first, last))
    history.rate(logs.feedback(since=history.start))


def _read_all(logs: Logs, history: TrafficHistory, cursor: str, count: int) -> None:
    while count > 0:
        page = logs.page(after=cursor, limit=min(count, PAGE_SIZE))
        for record in page.records:
            history.add(record)
        if page.cursor == cursor:
            return
        cursor, count = page.cursor, count - len(page.records) - page.damaged


def _read_sample(logs: Logs, history: TrafficHistory, cursor: str, count: int) -> None:
    """Add the first page of a part of `count` records."""
    if count > 0:
        records = logs.page(after=cursor, limit=min(count, PAGE_SIZE)).records
        for record in records:
            history.add(record, max(1.0, count / len(records)))


_TOTAL = ("", "")


def _places(record: RoutingRecord) -> Iterable[tuple[str, str]]:
    yield _TOTAL
    yield "expert", record.expert or "none"
    yield "category", record.category or "none"
    yield "key", record.key or "none"
