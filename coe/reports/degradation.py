"""Finds experts that got worse: their ratings by category against the measured scores and the ratings before.

The test of an expert starts anew at every midnight (UTC). Each start is an e-process over all categories, and their sum
over the starts is compared with a threshold (an e-detector, Shin, Ramdas and Rinaldo 2023). So a report may look as
often as it likes, and experts together raise a false alarm once in FALSE_ALARM_DAYS at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.learning.refit import agreements, trust_of
from coe.planning.plan import Drop
from coe.planning.score_table import Array
from coe.trials.evidence import log_evidence

DAY_SECONDS = 86_400.0
FALSE_ALARM_DAYS = 5_000
"""Least mean number of days between two false alarms, over all experts: in 50 days, one with a probability of 1 %."""
MIN_DROP = 0.05
"""Drop of the mean rating that is no alarm, however sure."""
MAX_PROBES, ERRORS = 20.0, 1.5
"""Ratings that a measured score counts as at most, since raters may be stricter than checkers; and the standard errors
by which the expected rating is lowered."""
NAMED_ERROR = 0.05
"""Expected share of the named categories of an alarm that are unchanged (e-BH, Wang and Ramdas 2022)."""


@dataclass(frozen=True, slots=True)
class Degradation:
    """An expert that got worse: the day it began (Unix seconds), a bound of the p-value, and its drops."""

    expert: str
    since: float
    chance: float
    drops: tuple[Drop, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """Prior knowledge of each cell: `quality` and the number of scores `count`, both (m, k), which is 0 without scores;
    and the time at which the scores of each expert were measured (Unix seconds)."""

    quality: Array
    count: Array
    measured_at: Mapping[str, float]


def degradations(experience: Experience, baseline: Baseline) -> tuple[Degradation, ...]:
    """The experts that got worse, from the ratings since they were measured; untrusted tenants do not count."""
    rated = experience.part(experience.rated & (trust_of(experience, agreements(experience)) == 1.0))
    found = []
    for column, expert in enumerate(rated.experts):
        own = rated.part((rated.chosen == column) & (rated.time >= baseline.measured_at.get(expert, 0.0)))
        if len(own) and (worse := _degradation(expert, own, baseline.quality[:, column], baseline.count[:, column])):
            found.append(worse)
    return tuple(found)


def _degradation(expert: str, own: Experience, quality: Array, count: Array) -> Degradation | None:
    """Test the ratings of an expert against its `quality` by `count` scores, both (m,). None if it is not worse."""
    order = np.argsort(own.time, kind="stable")
    category, day = own.posterior.argmax(axis=1)[order], np.floor(own.time[order] / DAY_SECONDS)
    reward = own.reward[order].astype(np.float64)
    known = own.posterior[order].astype(np.float64) @ np.where(np.isfinite(quality), quality, 0.0)
    cells = [(row, category == row) for row in np.unique(category).tolist()]
    starts, total, names = np.unique(day), [], len(cells)
    tests: list[list[tuple[float, Drop]]] = []
    for start in starts.tolist():
        tests.append([])
        for row, mine in cells:
            probes = min(float(count[row]), MAX_PROBES)
            expected = known[mine] if probes else np.zeros(int(mine.sum()))
            value = _cell(reward[mine], expected, day[mine] >= start, probes)
            if value is not None:
                tests[-1].append((value[0], Drop(own.categories[row], *value[1:])))
        total.append(_combined(np.array([value for value, _ in tests[-1]]), names))
    evidence = float(np.logaddexp.reduce(total)) - np.log(len(own.experts))
    if evidence < np.log(FALSE_ALARM_DAYS):
        return None
    best = int(np.argmax(total))
    ranked = sorted(tests[best], key=lambda one: -one[0])
    kept = [n for n, (value, _) in enumerate(ranked, start=1) if value >= np.log(names / n / NAMED_ERROR)]
    drops = tuple(drop for _, drop in ranked[: max(kept, default=1)])
    return Degradation(expert, float(starts[best]) * DAY_SECONDS, float(np.exp(-evidence)), drops)


def _combined(logs: Array, cells: int) -> float:
    """The logarithm of the evidence for a drop in any of the cells: each has dropped with a probability of one in
    `cells`, or of a half."""
    shares = np.array([[1 / cells], [0.5]])
    with np.errstate(divide="ignore"):  # a single cell
        each = np.logaddexp(np.log1p(-shares), logs + np.log(shares)).sum(axis=1)
    return float(np.logaddexp.reduce(each) - np.log(2))


def _cell(
    reward: Array, expected: Array, since: NDArray[np.bool_], probes: float
) -> tuple[float, float, float, int] | None:
    """The logarithm of the evidence of one cell for a drop `since` a start, with the expected and the mean rating, and
    their number; None without ratings, or with nothing to compare them with."""
    before = ~since
    known = probes + before.sum()
    if not since.any() or not known:
        return None
    level = expected[since] + float((reward - expected)[before].sum()) / known
    mean = float(np.clip(level.mean(), 0.05, 0.95))
    least = np.clip(level - MIN_DROP - ERRORS * np.sqrt(mean * (1 - mean) / known), 0.0, 0.99)
    evidence = float(log_evidence(least - reward[since], least - 1.0)[-1])
    return evidence, float(np.clip(level.mean(), 0.0, 1.0)), float(reward[since].mean()), int(since.sum())
