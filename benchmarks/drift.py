"""Drift alarms: rate of false alarms, and the smallest shift that is detected.

    python benchmarks/drift.py [--series N] [--days N] [--requests N] [--json FILE]

Synthetic traffic of 14 categories: each series is one reference and a number of later days. Each day is compared with
the reference, as `coe report` does. In a quiet series nothing changes; in each other series one property changes from
the first day on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from coe.learning.experience import Experience
from coe.planning import Assignment, Problem, solve
from coe.planning.score_table import ScoreTable
from coe.reports.alarms import degradation_alarms
from coe.reports.drift import TrafficSample, detect_drift

CATEGORIES = tuple(f"c{number}" for number in range(14))
EXPERTS = ("small", "large", "coder", "lawyer")
WIDTH = 64

Change = Callable[[np.ndarray, float, np.ndarray], tuple[np.ndarray, float, np.ndarray]]
"""Maps the category mix, the mean confidence and the category centres to changed ones."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {
        "quiet": alarmed(given.series, given.days, given.requests, quiet),
        "shifts": {
            name: alarmed(given.series // 4, 1, given.requests, change)["any"] for name, change in CHANGES.items()
        },
        "degradation": {str(fall): degraded(given.series, given.requests * 2, fall) for fall in (0.0, 0.05, 0.1, 0.2)},
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text)


def alarmed(series: int, days: int, requests: int, change: Change) -> dict[str, float]:
    """Share of series with an alarm on any day, by aspect and for any aspect."""
    hits: dict[str, int] = {"any": 0}
    for number in range(series):
        random = np.random.default_rng(number)
        scored_prompts = (
            random.dirichlet(np.full(len(CATEGORIES), 3.0)),
            0.8,
            random.normal(size=(len(CATEGORIES), WIDTH)),
        )
        reference, later = traffic(random, requests, *scored_prompts), change(*scored_prompts)
        aspects = {
            finding.aspect
            for day in range(days)
            for finding in detect_drift(
                reference, traffic(random, requests, *later), categories=CATEGORIES, test=day + 1
            )
            if finding.alarm
        }
        for name in (*aspects, *(("any",) if aspects else ())):
            hits[name] = hits.get(name, 0) + 1
    return {name: count / series for name, count in hits.items()}


def traffic(
    random: np.random.Generator, count: int, mix: np.ndarray, mean: float, centres: np.ndarray
) -> TrafficSample:
    category = random.choice(len(CATEGORIES), count, p=mix)
    vectors = centres[category] + random.normal(size=(count, WIDTH)) * 2.0
    confidence = random.beta(10 * mean, 10 * (1 - mean), count)
    return TrafficSample(category, confidence, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def quiet(mix: np.ndarray, mean: float, centres: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    return mix, mean, centres


def moved(share: float) -> Change:
    """This share of the traffic goes to the rarest category."""

    def change(mix: np.ndarray, mean: float, centres: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        other = mix * (1 - share)
        other[mix.argmin()] += share
        return other, mean, centres

    return change


def unsure(fall: float) -> Change:
    return lambda mix, mean, centres: (mix, mean - fall, centres)


def turned(share: float) -> Change:
    """The centre of the largest category moves this part of the way to somewhere new."""

    def change(mix: np.ndarray, mean: float, centres: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
        other = centres.copy()
        new = np.random.default_rng(1).normal(size=WIDTH) * 2
        other[mix.argmax()] += share * (new - other[mix.argmax()])
        return mix, mean, other

    return change


CHANGES: dict[str, Change] = {
    "5 % to another category": moved(0.05),
    "10 % to another category": moved(0.1),
    "20 % to another category": moved(0.2),
    "mean confidence -.02": unsure(0.02),
    "mean confidence -.05": unsure(0.05),
    "half of the way, largest category": turned(0.5),
    "all of the way, largest category": turned(1.0),
}


def degraded(series: int, requests: int, fall: float) -> dict[str, float]:
    """Return how often the alarm names the expert that became worse, and how often another one.

    Each series is one comparison of a week and a day.
    """
    named = wrong = 0
    for number in range(series):
        random = np.random.default_rng(number)
        quality = random.uniform(0.4, 0.9, (len(CATEGORIES), len(EXPERTS)))
        plan = planned(quality)
        worse = quality.copy()
        worse[:, 0] -= fall
        week, day = rated(random, requests, quality), rated(random, requests // 4, worse)
        found = degradation_alarms(week, day, assignment=plan)
        named += any(alarm.expert == EXPERTS[0] for alarm in found)
        wrong += any(alarm.expert != EXPERTS[0] for alarm in found)
    return {"named": named / series, "others": wrong / series}


def planned(quality: np.ndarray) -> Assignment:
    table = ScoreTable(CATEGORIES, EXPERTS, quality, quality * 0, np.full(quality.shape, 50.0))
    return solve(Problem.of(table, quality=quality))


def rated(random: np.random.Generator, count: int, quality: np.ndarray) -> Experience:
    category, chosen = random.integers(len(CATEGORIES), size=count), random.integers(len(EXPERTS), size=count)
    posterior = np.full((count, len(CATEGORIES)), 0.02, dtype=np.float32)
    posterior[np.arange(count), category] = 1 - 0.02 * (len(CATEGORIES) - 1)
    nothing: dict[str, Any] = {"categories": CATEGORIES, "experts": EXPERTS, "tenants": ("",), "versions": ("v",)}
    return Experience(
        **nothing,
        posterior=posterior,
        chosen=chosen.astype(np.int16),
        allowed=np.ones((count, len(EXPERTS)), dtype=np.bool_),
        propensity=np.full(count, 1 / len(EXPERTS), dtype=np.float32),
        reward=(random.random(count) < quality[category, chosen]).astype(np.float32),
        kind=np.zeros(count, dtype=np.int8),
        corrected=np.full(count, -1, dtype=np.int16),
        tenant=np.zeros(count, dtype=np.int32),
        version=np.zeros(count, dtype=np.int32),
        time=np.arange(count, dtype=np.float64),
        identity=np.arange(count, dtype=np.uint64),
    )


if __name__ == "__main__":
    main()
