"""Trust in tenants' feedback: who systematically says the opposite of the others."""

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
"""Rated requests below which a tenant's agreement is not judged."""
MIN_AGREEMENT = 0.5
"""Agreement below which a tenant counts as disagreeing, once the doubt about it is small enough."""
SIGNIFICANCE = 0.01
"""Chance that any honest tenant of all of them is taken for a disagreeing one."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one tenant's rewards follow what the others' say of the same experts and categories.

    `slope` is the regression of the tenant's rewards on the others' expectation: 1 in agreement, 0 unrelated, -1
    flipped; `error` its standard error. `trust`, 0 to 1, is what the tenant's feedback is multiplied with.
    """

    tenant: str
    requests: int
    slope: float
    error: float
    trust: float

    @property
    def sentence(self) -> str:
        """For a report."""
        return (
            f"tenant {self.tenant!r}: agreement {self.slope:.2f} ± {self.error:.2f} with the others over "
            f"{self.requests} rated requests; its feedback counts {self.trust:.0%}"
        )


def agreements(experience: Experience, *, base: ScoreTable | None = None) -> tuple[Agreement, ...]:
    """Judge every tenant with enough feedback against the others (and against `base`, quality that was measured).

    The level does not matter: whose requests are harder rates everybody lower. One after the other, the tenant that
    disagrees most surely is trusted less and the rest judged anew without it, so that an honest tenant does not suffer
    from being compared with a flipped one. Those doubted never make up half of all scores: then the others might be the
    odd ones. With one tenant and no base there is nothing to compare with.
    """
    told = experience.part(experience.rated)
    ones = np.ones(len(told))
    sums = sums_by_tenant(told, ones, ones, told.posterior)
    sizes = np.bincount(told.tenant, minlength=len(told.tenants))
    limit = NormalDist().inv_cdf(1.0 - SIGNIFICANCE / max(int((sizes >= MIN_RATED).sum()), 1))
    judging = dict(told.by_tenant((sizes >= MIN_RATED)[told.tenant]))
    settled: list[Agreement] = []
    everybody, doubted = sums.sum(axis=1), 0
    voices = len(told) + (0.0 if base is None else float(base.count.sum()))
    while True:
        judged = [_agreement(told, rows, everybody - sums[:, tenant], base) for tenant, rows in judging.items()]
        wrong = [
            found
            for found in judged
            if found.slope + limit * found.error < MIN_AGREEMENT and doubted + found.requests < voices / 2
        ]
        if not wrong:
            return tuple(sorted((*judged, *settled), key=lambda found: found.tenant))
        worst = min(wrong, key=lambda found: (found.slope - MIN_AGREEMENT) / found.error)
        settled.append(replace(worst, trust=max(0.0, worst.slope)))
        number = told.tenants.index(worst.tenant)
        del judging[number]
        everybody, doubted = everybody - sums[:, number], doubted + worst.requests


def _agreement(told: Experience, rows: NDArray[np.int64], others: Array, base: ScoreTable | None) -> Agreement:
    own = told.part(rows)
    opinion = score_table_from_sums(told, np.maximum(others, 0.0))
    table = opinion if base is None else merged(opinion, base)
    expects = (own.posterior @ table.shrunk())[np.arange(len(own)), own.chosen]
    slope, error = _regression(expects, own.reward.astype(np.float64))
    return Agreement(told.tenants[int(own.tenant[0])], len(own), slope, error, 1.0)


def _regression(expects: Array, rewards: Array) -> tuple[float, float]:
    """Slope with an intercept, and its standard error (robust, HC1); no doubt arises where all is expected alike."""
    centred = expects - expects.mean()
    square = float((centred**2).sum())
    if square < 1e-9:
        return 1.0, float("inf")
    slope = float(centred @ rewards / square)
    residual = rewards - rewards.mean() - slope * centred
    count = len(rewards)
    error = np.sqrt(float(((centred * residual) ** 2).sum()) * count / (count - 2)) / square
    return slope, max(float(error), 1e-9)
