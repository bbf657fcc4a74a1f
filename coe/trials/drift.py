"""Detects drift: tests whether traffic has moved away from what the router and the plan were made for.

Two tests compare a recent sample with a reference: the category mix (G-test) and the confidence (Kolmogorov-Smirnov).
An alarm needs a significant shift that is also large enough to matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.trials.contrasts import significance_level

Array = NDArray[np.float64]
Aspect = Literal["category mix", "confidence"]
"""What may shift."""
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)

MIN_EFFECT = 0.05
"""Smallest effect of an alarm: the share of traffic that changes category (total variation), or the largest gap of the
two distributions (Kolmogorov-Smirnov statistic)."""
FALSE_DISCOVERY_RATE = 0.05
CONFIDENCE_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class TrafficSample:
    """Traffic of one period: the indices of the likeliest categories and the confidence, each of shape (n,)."""

    category: NDArray[np.int64]
    confidence: Array

    def shares(self, categories: Sequence[str]) -> tuple[dict[str, float], list[float]]:
        """Return the shares of the categories, and those of CONFIDENCE_BINS equal ranges of the confidence."""
        mix = np.bincount(self.category, minlength=len(categories)) / len(self.category)
        bins = np.minimum((self.confidence * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
        found = np.bincount(bins, minlength=CONFIDENCE_BINS) / len(bins)
        return dict(zip(categories, mix.round(5).tolist(), strict=True)), found.round(5).tolist()


@dataclass(frozen=True, slots=True)
class DriftFinding:
    """One test: its p-value `chance`, the size of the `effect` (see MIN_EFFECT), and whether both make an alarm."""

    aspect: Aspect
    effect: float
    chance: float
    alarm: bool
    sentence: str


def detect_drift(
    reference: TrafficSample, recent: TrafficSample, *, categories: Sequence[str], test: int
) -> tuple[DriftFinding, ...]:
    """The findings of the `test`-th test (from 1) against the same reference.

    All tests against a reference together raise a false alarm with a probability of at most 5 %
    (`contrasts.significance_level`; within a test, Holm 1979). A new reference, as after a promotion, starts over.
    Requests are assumed to be independent. Raises DataError on an empty sample.
    """
    if not len(reference.category) or not len(recent.category):
        raise DataError("drift: a sample is empty; wait for traffic")
    tests = [_category_mix_test(reference.category, recent.category, categories), _confidence_test(reference, recent)]
    adjusted = holm([chance for _, _, chance, _ in tests])
    found = []
    for (aspect, effect, chance, detail), adjusted_chance in zip(tests, adjusted, strict=True):
        alarm = adjusted_chance < significance_level(test) and effect >= MIN_EFFECT
        sentence = f"{aspect} {'has shifted' if alarm else 'is as before'}: {detail} (p = {chance:.2g})"
        found.append(DriftFinding(aspect, effect, chance, alarm, sentence))
    return tuple(found)


_TestResult = tuple[Aspect, float, float, str]


def _category_mix_test(before: NDArray[np.int64], after: NDArray[np.int64], categories: Sequence[str]) -> _TestResult:
    """G-test of both mixes; a test for each category names those that moved (Benjamini and Hochberg 1995)."""
    from scipy.stats import chi2_contingency, false_discovery_control

    counts = np.stack([np.bincount(side, minlength=len(categories)) for side in (before, after)]).astype(np.float64)
    seen = counts.sum(axis=0) > 0
    shares = counts / counts.sum(axis=1, keepdims=True)
    change = shares[1] - shares[0]
    effect = float(np.abs(change).sum() / 2)
    if seen.sum() < 2:
        return "category mix", effect, 1.0, "there is one category only"
    chance = float(chi2_contingency(counts[:, seen], correction=False, lambda_="log-likelihood").pvalue)
    known = np.flatnonzero(seen)
    single = [
        float(chi2_contingency(np.stack((counts[:, i], counts.sum(axis=1) - counts[:, i])), correction=True).pvalue)
        for i in known
    ]
    moved = known[false_discovery_control(single) <= FALSE_DISCOVERY_RATE]
    largest = sorted(moved, key=lambda i: -abs(change[i]))[:3]
    names = ", ".join(f"{categories[i]} {shares[0][i]:.0%} to {shares[1][i]:.0%}" for i in largest)
    return "category mix", effect, chance, names or f"{effect:.1%} of traffic elsewhere"


def _confidence_test(reference: TrafficSample, recent: TrafficSample) -> _TestResult:
    from scipy.stats import ks_2samp

    found = ks_2samp(reference.confidence, recent.confidence, method="asymp")
    medians = np.median(reference.confidence), np.median(recent.confidence)
    return "confidence", float(found.statistic), float(found.pvalue), f"median {medians[0]:.2f} to {medians[1]:.2f}"


def holm(chances: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): each is the level at which its test would still be
    significant."""
    order = np.argsort(chances)
    scaled = [chances[i] * (len(chances) - place) for place, i in enumerate(order)]
    adjusted = np.empty(len(chances))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]
