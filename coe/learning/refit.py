"""Estimates quality from feedback: score tables of weighted rewards, the trust in each tenant, and the refitted table.

`refit` estimates the quality of each expert in each category from feedback and measured scores together. Bounds keep a
single tenant, or requests that probably belong to another category, from dominating a cell. Feedback counts less if it
systematically contradicts the prediction from other tenants' feedback (`agreements`). The ratings of an expert that an
alarm demoted stand in place of its scores until it is measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from coe.learning.experience import Experience
from coe.planning.plan import Demoted, Drop, Plan
from coe.planning.score_table import PSEUDO_COUNT, ScoreTable

Array = NDArray[np.float64]
BISECTION_STEPS = 50


def score_table(experience: Experience, utility: Array, importance: Array, *, share: float, free: float) -> ScoreTable:
    """Return the score table of the rewards. Request i counts as `utility[i]` scores (0 to 1), each with the weight
    `importance[i]`.

    Two bounds hold in each cell. Requests whose most likely category is another one count together at most as much as
    the cell's own (or `free`), so that they do not dominate a small category. One tenant has at most `share` of the
    cell (or `free`, or an equal part where there are too few tenants). Counts are effective sample sizes
    (Kish 1965), since scores of uneven importance carry less information.
    """
    best = experience.posterior.argmax(axis=1)[:, None] == np.arange(len(experience.categories))
    own = sums_by_tenant(experience, utility, importance, experience.posterior * best)
    borderline = sums_by_tenant(experience, utility, importance, experience.posterior * ~best)
    inside, outside = own[0].sum(axis=0), borderline[0].sum(axis=0)
    limit = np.maximum(inside, free)
    scale = np.divide(limit, outside, out=np.ones_like(outside), where=outside > limit)
    sums = own + borderline * scale  # the number of scores decreases, not their importance
    factor = tenant_factors(sums[0].reshape(len(sums[0]), -1), share=share, free=free).reshape(sums[0].shape)
    return score_table_from_sums(experience, (sums * factor).sum(axis=1))


def sums_by_tenant(experience: Experience, utility: Array, importance: Array, posterior: NDArray[np.floating]) -> Array:
    """Return sums over requests of w u, w u², w u r and w u r², shape (4, n_tenants, m, k).

    w is `posterior` (n, m) times `utility`, u the `importance` and r the reward.
    """
    known = np.isfinite(experience.reward) & (utility > 0)
    sums = np.zeros((4, len(experience.tenants), len(experience.categories), len(experience.experts)))
    for tenant, rows in experience.by_tenant(known):
        part = experience.part(rows)
        chosen = np.zeros((len(part), len(part.experts)))
        chosen[np.arange(len(part)), part.chosen] = utility[rows] * importance[rows]
        reward = part.reward.astype(np.float64)
        each = (np.ones(len(part)), importance[rows], reward, reward**2)
        sums[:, tenant] = np.stack([posterior[rows].T @ (chosen * factor[:, None]) for factor in each])
    return sums


def score_table_from_sums(experience: Experience, sums: Array) -> ScoreTable:
    """Return the score table of sums of shape (4, m, k)."""
    mass, square, total, second = sums
    table = ScoreTable.of_sums(experience.categories, experience.experts, mass, total, second)
    return replace(table, count=np.divide(mass**2, square, out=np.zeros_like(mass), where=square > 0))


def tenant_factors(weights: Array, *, share: float, free: float) -> Array:
    """Return factors (0 to 1) that bound each tenant's part of each cell; `weights` has shape (n_tenants, n_cells).

    The bound is the largest level c with c <= share x sum of min(weight, c), found by bisection; `free` is always
    allowed.
    """
    present = (weights > 0).sum(axis=0)
    part = np.maximum(share, 1.0 / np.maximum(present, 1)) * (1.0 + 1e-9)
    low, high = np.zeros(weights.shape[1]), weights.max(axis=0)
    fits = part * weights.sum(axis=0) >= high
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        fits_middle = part * np.minimum(weights, middle).sum(axis=0) >= middle
        low, high = np.where(fits_middle, middle, low), np.where(fits_middle, high, middle)
    level = np.maximum(np.where(fits, np.inf, low), free)
    return np.divide(np.minimum(weights, level), weights, out=np.ones_like(weights), where=weights > 0)


def merged(table: ScoreTable, base: ScoreTable) -> ScoreTable:
    """Return both tables together, each weighted by its counts.

    Checked probes and user ratings differ in level, so the base is first shifted by the weighted median difference over
    the cells that both have. The median ignores the few cells in which an expert has changed since the base was
    measured. Differences between experts in the base stay.
    """
    new, old = np.nan_to_num(table.mean), np.nan_to_num(base.mean)
    old = np.clip(old + level_difference(table, base), 0.0, 1.0)
    count = table.count + base.count
    squares = table.count * (np.nan_to_num(table.variance) + new**2)
    squares += base.count * (np.nan_to_num(base.variance) + old**2)
    return ScoreTable.of_sums(table.categories, table.experts, count, table.count * new + base.count * old, squares)


def level_difference(table: ScoreTable, base: ScoreTable) -> float:
    """Return the level of `table` minus that of `base`: the weighted median difference over shared cells."""
    new, old = np.nan_to_num(table.mean), np.nan_to_num(base.mean)
    return _weighted_median(new - old, np.minimum(table.count, base.count))


def _weighted_median(values: Array, weights: Array) -> float:
    """Return the value at half of the total weight, interpolated between its neighbours; 0 without weight."""
    order = np.argsort(values, axis=None)
    value, weight = values.ravel()[order], weights.ravel()[order]
    if not weight.sum():
        return 0.0
    value, weight = value[weight > 0], weight[weight > 0]
    middle = (np.cumsum(weight) - weight / 2) / weight.sum()
    return float(np.interp(0.5, middle, value))


# --------------------------------------------------------------------------------------------------- demoted experts


def demoted_cells(
    demoted: Demoted, categories: Sequence[str], experts: Sequence[str]
) -> Iterator[tuple[tuple[int, int], Drop]]:
    """Yield the row and column of each drop, where both names are known."""
    for expert, drops in demoted.items():
        for drop in drops:
            if expert in experts and drop.category in categories:
                yield (categories.index(drop.category), experts.index(expert)), drop


def with_demoted(table: ScoreTable, demoted: Demoted) -> ScoreTable:
    """Return the table with the found ratings in place of the scores."""
    mean, variance, count = table.mean.copy(), table.variance.copy(), table.count.copy()
    for cell, drop in demoted_cells(demoted, table.categories, table.experts):
        mean[cell], variance[cell], count[cell] = drop.found, drop.found * (1 - drop.found), drop.ratings
    return replace(table, mean=mean, variance=variance, count=count)


def demoted_categories(demoted: Demoted) -> dict[str, list[str]]:
    """Return the categories of each demoted expert."""
    return {name: [drop.category for drop in drops] for name, drops in demoted.items()}


def still_demoted(plan: Plan, measured_at: Mapping[str, float]) -> Demoted:
    """Return the demoted experts whose scores, of the times `measured_at`, are not newer than the plan's. A recipe is
    measured with the experts."""
    now, then = (max(times.values(), default=0.0) for times in (measured_at, plan.measured_at))
    return {
        name: drops
        for name, drops in plan.demoted.items()
        if measured_at.get(name, now) <= plan.measured_at.get(name, then)
    }


# ---------------------------------------------------------------------------------------------------- trust in tenants

MIN_RATED = 50
"""Smallest number of rated requests of a tenant that is compared with the others."""
MIN_AGREEMENT = 0.5
"""A tenant disagrees if its slope is significantly below this value."""
SIGNIFICANCE = 0.01
"""Largest probability that any honest tenant is found to disagree."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of one tenant's rewards with the prediction from other tenants' rewards by expert and category.

    `slope` is the regression slope of the tenant's rewards on that prediction: 1 in agreement, 0 unrelated, -1
    inverted. `error` is its standard error. `trust`, 0 to 1, is the factor on the weight of the tenant's feedback.
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
    """Compare every tenant that has enough feedback with the others (and with `base`, measured quality).

    Levels do not matter, since harder requests get lower ratings from any tenant. The tenant that disagrees most
    significantly is trusted less, and the others are compared again without it. This repeats, so that honest tenants
    are not compared with an inverted one. Distrusted tenants together have less than half of all scores, because
    otherwise the others might be the wrong ones. With one tenant and no base there is no comparison.
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
    """Return the slope of a regression with intercept, and its robust standard error (HC1).

    The error is infinite if all predictions are equal.
    """
    centred = expected - expected.mean()
    square = float((centred**2).sum())
    if square < 1e-9:
        return 1.0, float("inf")
    slope = float(centred @ rewards / square)
    residual = rewards - rewards.mean() - slope * centred
    count = len(rewards)
    error = np.sqrt(float(((centred * residual) ** 2).sum()) * count / (count - 2)) / square
    return slope, max(float(error), 1e-9)


# --------------------------------------------------------------------------------------------------------------- refit

DAY_SECONDS = 86_400.0
MAX_PSEUDO_COUNT = 30.0
"""Largest pseudo-count once feedback exists, since experts may by then differ by category and not only in level."""


@dataclass(frozen=True, slots=True)
class Weighting:
    """The weight of a request's feedback.

    `half_life` in days discounts old feedback, since experts and users change. Requests are weighted by their inverse
    propensity, at most `clip`; 1 ignores propensities. Larger weights would add more variance than they remove bias.
    `share` is the largest part of one tenant in a cell. `free` is the number of scores that is always allowed.
    `pseudo_count` is the strength of shrinkage.
    """

    half_life: float = 30.0
    clip: float = 3.0
    share: float = 0.5
    free: float = 30.0
    pseudo_count: float = PSEUDO_COUNT


@dataclass(frozen=True, slots=True, eq=False)
class Refit:
    """The score table of feedback and measured scores together, and the agreement of tenants.

    `feedback` is the part of the table that comes from feedback. `level` is the level of feedback minus that of the
    measured scores; 0 without measured scores.
    """

    table: ScoreTable
    agreements: tuple[Agreement, ...]
    weighting: Weighting
    feedback: ScoreTable
    level: float

    @property
    def quality(self) -> Array:
        """Shrunk quality by category and expert, shape (m, k)."""
        return self.table.shrunk(pseudo_count=self.weighting.pseudo_count)


def trust_of(experience: Experience, found: tuple[Agreement, ...]) -> Array:
    """Return the trust in each request's tenant, shape (n,); 1 for a tenant that is not in `found`."""
    by_name = {agreement.tenant: agreement.trust for agreement in found}
    trust = np.array([by_name.get(tenant, 1.0) for tenant in experience.tenants])
    return np.asarray(trust[experience.tenant])


def refit(
    experience: Experience,
    *,
    now: float,
    base: ScoreTable | None = None,
    weighting: Weighting | None = None,
    found: tuple[Agreement, ...] | None = None,
) -> Refit:
    """Return the table that results from the experience up to `now` (Unix seconds).

    `base` is measured quality (`coe score`), over the same categories and experts. `found` are agreements of the
    whole experience, for refits of its parts.
    """
    rule = weighting or Weighting()
    known = agreements(experience, base=base) if found is None else found
    age = np.maximum(now - experience.time, 0.0) / DAY_SECONDS
    utility = experience.weight * np.exp2(-age / rule.half_life) * trust_of(experience, known)
    propensity = np.where(experience.propensity > 0, experience.propensity, 1.0)
    importance = np.minimum(1.0 / propensity, rule.clip)
    table = score_table(experience, utility, importance, share=rule.share, free=rule.free)
    if base is None:
        return Refit(table, known, rule, table, 0.0)
    return Refit(merged(table, base), known, rule, table, level_difference(table, base))
