"""Estimates how far to trust each tenant's feedback: a tenant that systematically contradicts the others counts less.

It regresses a tenant's rewards on what the other tenants' rewards predict. The plan and gate rounds of `coe retrain`
weigh feedback by the trust.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.evidence import merged, score_table_from_sums, sums_by_tenant
from coe.learning.estimation.experience import Experience
from coe.mapping.score_table import ScoreTable

Array = NDArray[np.float64]

MIN_RATED = 50
"""Rated requests that a tenant's judgement needs."""
MIN_AGREEMENT = 0.5
"""Agreement below which a tenant counts as disagreeing, if significantly so."""
SIGNIFICANCE = 0.01
"""Probability that at least one honest tenant is judged to disagree."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """The relation of one tenant's rewards to the prediction from other tenants' rewards, by expert and category.

    `slope` is the regression of the tenant's rewards on that prediction: 1 in agreement, 0 unrelated, -1 inverted;
    `error` is its standard error. `trust`, 0 to 1, is the factor on the weight of the tenant's feedback.
    """

    tenant: str
    requests: int
    slope: float
    error: float
    trust: float

    @property
    def sentence(self) -> str:
        """The agreement in one sentence, for a report."""
        return (
            f"tenant {self.tenant!r}: agreement {self.slope:.2f} ± {self.error:.2f} with the others over "
            f"{self.requests} rated requests; its feedback counts {self.trust:.0%}"
        )


def agreements(experience: Experience, *, base: ScoreTable | None = None) -> tuple[Agreement, ...]:
    """Judge every tenant with enough feedback against the others (and against `base`, measured quality).

    Levels do not matter, since harder requests get lower ratings from any tenant. The tenant that disagrees most
    significantly is trusted less, and the others are judged again without it. This repeats, so that honest tenants are
    not compared with an inverted one. The distrusted never make up half of all scores: then the others might be the
    wrong ones. With one tenant and no base there is nothing to compare with.
    """
    rated = experience.part(experience.rated)
    ones = np.ones(len(rated))
    sums = sums_by_tenant(rated, ones, ones, rated.posterior)
    sizes = np.bincount(rated.tenant, minlength=len(rated.tenants))
    limit = NormalDist().inv_cdf(1.0 - SIGNIFICANCE / max(int((sizes >= MIN_RATED).sum()), 1))
    remaining = dict(rated.by_tenant((sizes >= MIN_RATED)[rated.tenant]))
    distrusted: list[Agreement] = []
    totals, distrusted_requests = sums.sum(axis=1), 0
    all_scores = len(rated) + (0.0 if base is None else float(base.count.sum()))
    while True:
        judged = [_agreement(rated, rows, totals - sums[:, tenant], base) for tenant, rows in remaining.items()]
        disagreeing = [
            found
            for found in judged
            if found.slope + limit * found.error < MIN_AGREEMENT
            and distrusted_requests + found.requests < all_scores / 2
        ]
        if not disagreeing:
            return tuple(sorted((*judged, *distrusted), key=lambda found: found.tenant))
        worst = min(disagreeing, key=lambda found: (found.slope - MIN_AGREEMENT) / found.error)
        distrusted.append(replace(worst, trust=max(0.0, worst.slope)))
        number = rated.tenants.index(worst.tenant)
        del remaining[number]
        totals, distrusted_requests = totals - sums[:, number], distrusted_requests + worst.requests


def _agreement(rated: Experience, rows: NDArray[np.int64], others: Array, base: ScoreTable | None) -> Agreement:
    own = rated.part(rows)
    others_table = score_table_from_sums(rated, np.maximum(others, 0.0))
    table = others_table if base is None else merged(others_table, base)
    expected = (own.posterior @ table.shrunk())[np.arange(len(own)), own.chosen]
    slope, error = _regression(expected, own.reward.astype(np.float64))
    return Agreement(rated.tenants[int(own.tenant[0])], len(own), slope, error, 1.0)


def _regression(expected: Array, rewards: Array) -> tuple[float, float]:
    """Slope with an intercept, and its standard error (robust, HC1); infinite error where all predictions are equal."""
    centred = expected - expected.mean()
    square = float((centred**2).sum())
    if square < 1e-9:
        return 1.0, float("inf")
    slope = float(centred @ rewards / square)
    residual = rewards - rewards.mean() - slope * centred
    count = len(rewards)
    error = np.sqrt(float(((centred * residual) ** 2).sum()) * count / (count - 2)) / square
    return slope, max(float(error), 1e-9)
