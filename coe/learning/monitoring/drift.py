"""Drift: has traffic moved away from what the router and the plan were made for? Tests that rarely cry wolf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.learning.monitoring.traffic_report import Aspect
from coe.learning.retraining.promotion import significance_level

Array = NDArray[np.float64]

MIN_EFFECT = {"category mix": 0.05, "confidence": 0.05, "embeddings": 0.05}
"""Effects below which a shift is no news, however sure: the share of traffic that would have to change category (total
variation); the largest gap of the two distributions (Kolmogorov and Smirnov); and how much better than a coin the two
samples are told apart along the direction in which they differ most."""
MAX_EMBEDDINGS = 1000
"""Requests of each side whose embeddings are compared."""
RANDOM_FEATURES, PERMUTATIONS = 256, 1000


@dataclass(frozen=True, slots=True, eq=False)
class TrafficSample:
    """Traffic of one time: `category` (n,) indices of the likeliest categories, `confidence` (n,), and `embeddings`
    (n_embedded, dimensions), unit length, of some or none of it."""

    category: NDArray[np.int64]
    confidence: Array
    embeddings: NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class DriftFinding:
    """One test: the `chance` of as large a shift by luck, the size of the `effect` (see SMALLEST), and whether both
    make an alarm."""

    aspect: Aspect
    effect: float
    chance: float
    alarm: bool
    sentence: str


def detect_drift(
    reference: TrafficSample, recent: TrafficSample, *, categories: Sequence[str], look: int
) -> tuple[DriftFinding, ...]:
    """The findings of the `look`-th look (from 1) against the same reference.

    All looks together give a false alarm with a chance of 5 % at most (`promotion.allowance`; within a look, Holm). A
    new reference, as after a promotion, starts anew. Requests are taken to be independent. Raises DataError on an empty
    sample.
    """
    if not len(reference.category) or not len(recent.category):
        raise DataError("drift: a sample is empty; wait for traffic")
    tests = [_category_mix_test(reference.category, recent.category, categories), _confidence_test(reference, recent)]
    if len(reference.embeddings) and len(recent.embeddings):
        tests.append(_embedding_test(reference.embeddings, recent.embeddings))
    adjusted = holm([chance for _, _, chance, _ in tests])
    found = []
    for (aspect, effect, chance, said), surely in zip(tests, adjusted, strict=True):
        alarm = surely < significance_level(look) and effect >= MIN_EFFECT[aspect]
        sentence = f"{aspect} {'has shifted' if alarm else 'is as before'}: {said} (by luck {chance:.2g})"
        found.append(DriftFinding(aspect, effect, chance, alarm, sentence))
    return tuple(found)


_TestResult = tuple[Aspect, float, float, str]


def _category_mix_test(before: NDArray[np.int64], after: NDArray[np.int64], categories: Sequence[str]) -> _TestResult:
    """G-test of both mixes; the categories that moved are named by a test each (Benjamini and Hochberg 1995)."""
    from scipy.stats import chi2_contingency

    counts = np.stack([np.bincount(side, minlength=len(categories)) for side in (before, after)]).astype(np.float64)
    seen = counts.sum(axis=0) > 0
    shares = counts / counts.sum(axis=1, keepdims=True)
    moved = shares[1] - shares[0]
    effect = float(np.abs(moved).sum() / 2)
    if seen.sum() < 2:
        return "category mix", effect, 1.0, "there is one category only"
    chance = float(chi2_contingency(counts[:, seen], correction=False, lambda_="log-likelihood").pvalue)
    known = np.flatnonzero(seen)
    single = [
        float(chi2_contingency(np.stack((counts[:, i], counts.sum(axis=1) - counts[:, i])), correction=True).pvalue)
        for i in known
    ]
    largest = sorted(known[benjamini_hochberg(single)], key=lambda i: -abs(moved[i]))[:3]
    names = ", ".join(f"{categories[i]} {shares[0][i]:.0%} to {shares[1][i]:.0%}" for i in largest)
    return "category mix", effect, chance, names or f"{effect:.1%} of traffic elsewhere"


def _confidence_test(reference: TrafficSample, recent: TrafficSample) -> _TestResult:
    from scipy.stats import ks_2samp

    found = ks_2samp(reference.confidence, recent.confidence, method="asymp")
    medians = np.median(reference.confidence), np.median(recent.confidence)
    return "confidence", float(found.statistic), float(found.pvalue), f"median {medians[0]:.2f} to {medians[1]:.2f}"


def _embedding_test(before: NDArray[np.floating], after: NDArray[np.floating]) -> _TestResult:
    """Maximum mean discrepancy (Gretton et al. 2012) of a Gaussian kernel in random features (Rahimi and Recht 2007),
    its chance by shuffling which sample a vector is from."""
    random = np.random.default_rng(0)
    sides = [side[random.permutation(len(side))[:MAX_EMBEDDINGS]].astype(np.float64) for side in (before, after)]
    both, first = np.concatenate(sides), len(sides[0])
    pairs = random.integers(0, len(both), (2, 2000))
    width = float(np.median(np.linalg.norm(both[pairs[0]] - both[pairs[1]], axis=1))) or 1.0
    angles = both @ random.normal(0.0, 1.0 / width, (both.shape[1], RANDOM_FEATURES)) + random.uniform(
        0, 2 * np.pi, RANDOM_FEATURES
    )
    features = np.sqrt(2.0 / RANDOM_FEATURES) * np.cos(angles)
    sign = np.where(np.arange(len(both)) < first, -1.0 / first, 1.0 / (len(both) - first))
    direction = sign @ features
    shuffled = random.permuted(np.tile(sign, (PERMUTATIONS, 1)), axis=1) @ features
    distances = (shuffled**2).sum(axis=1)
    own = float(direction @ direction)
    chance = _tail_probability(own, distances)
    return (
        "embeddings",
        _separability(features, first),
        chance,
        f"distance {own**0.5:.3f}, {distances.mean() ** 0.5:.3f} by luck",
    )


def _tail_probability(own: float, shuffled: Array) -> float:
    """The share of shuffled distances as large; beyond what shuffling resolves, by a gamma law of the same moments."""
    from scipy.stats import gamma

    larger = int((shuffled >= own).sum())
    if larger >= 10:
        return (larger + 1) / (len(shuffled) + 1)
    mean, variance = float(shuffled.mean()), float(shuffled.var())
    return float(gamma.sf(own, mean**2 / variance, scale=variance / mean))


def _separability(features: Array, first: int) -> float:
    """How much more often than a coin held-out halves are told apart by their projection on the difference of means."""
    before, after = features[:first], features[first:]
    right = []
    for held in (0, 1):
        fits = before[held::2].mean(axis=0), after[held::2].mean(axis=0)
        away = before[1 - held :: 2], after[1 - held :: 2]
        direction, middle = fits[1] - fits[0], (fits[0] + fits[1]) / 2
        hits = [
            float(((side - middle) @ direction * sign > 0).mean()) for side, sign in zip(away, (-1, 1), strict=True)
        ]
        right.append(sum(hits) / 2)
    return max(0.0, float(np.mean(right)) - 0.5)


def holm(chances: Sequence[float]) -> list[float]:
    """Chances corrected for their number (Holm 1979): each is the level at which its test would still count."""
    order = np.argsort(chances)
    scaled = [chances[i] * (len(chances) - place) for place, i in enumerate(order)]
    adjusted = np.empty(len(chances))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def benjamini_hochberg(chances: Sequence[float], *, rate: float = 0.05) -> NDArray[np.bool_]:
    """Which tests count, so that at most `rate` of those are expected to be false (Benjamini and Hochberg 1995)."""
    order = np.argsort(chances)
    small = np.asarray(chances)[order] <= rate * np.arange(1, len(chances) + 1) / len(chances)
    counted = np.zeros(len(chances), dtype=np.bool_)
    if small.any():
        counted[order[: int(np.flatnonzero(small).max()) + 1]] = True
    return counted
