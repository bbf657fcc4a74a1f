"""Builds score tables from weighted rewards by category and expert, and merges them with measured scores.

Bounds keep a single tenant, or requests that mostly belong to another category, from dominating a cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import Experience
from coe.mapping.score_table import ScoreTable

Array = NDArray[np.float64]
BISECTION_STEPS = 50


def score_table(experience: Experience, utility: Array, importance: Array, *, share: float, free: float) -> ScoreTable:
    """The score table of the rewards: request i counts as `utility[i]` scores (0 to 1) for `importance[i]` requests
    each.

    Two bounds hold in each cell. Requests that are likelier of another category count together at most as much as the
    cell's own (or `free`), so that many borderline requests do not dominate a small category. One tenant has at most
    `share` of the cell (or `free`, or an equal part where there are too few tenants). Counts are effective sample sizes
    (Kish 1965), since scores of uneven importance carry less information.
    """
    best = experience.posterior.argmax(axis=1)[:, None] == np.arange(len(experience.categories))
    own = sums_by_tenant(experience, utility, importance, experience.posterior * best)
    borderline = sums_by_tenant(experience, utility, importance, experience.posterior * ~best)
    inside, outside = own[0].sum(axis=0), borderline[0].sum(axis=0)
    limit = np.maximum(inside, free)
    scale = np.divide(limit, outside, out=np.ones_like(outside), where=outside > limit)
    sums = own + borderline * scale  # as if fewer scores were drawn, not weaker ones
    factor = tenant_factors(sums[0].reshape(len(sums[0]), -1), share=share, free=free).reshape(sums[0].shape)
    return score_table_from_sums(experience, (sums * factor).sum(axis=1))


def sums_by_tenant(experience: Experience, utility: Array, importance: Array, posterior: NDArray[np.floating]) -> Array:
    """Sums over requests of w u, w u², w u r and w u r², shape (4, n_tenants, m, k).

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
    """The score table of sums of shape (4, m, k)."""
    mass, square, total, second = sums
    nothing = np.full_like(mass, np.nan)
    mean = np.divide(total, mass, out=nothing.copy(), where=mass > 0)
    variance = np.divide(second, mass, out=nothing, where=mass > 0) - mean**2
    count = np.divide(mass**2, square, out=np.zeros_like(mass), where=square > 0)
    return ScoreTable(experience.categories, experience.experts, mean, np.maximum(variance, 0.0), count)


def tenant_factors(weights: Array, *, share: float, free: float) -> Array:
    """Factors (0 to 1) that bound each tenant's part of each cell; `weights` has shape (n_tenants, n_cells).

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
    """Both tables together; `base` is weighted by its counts.

    Checked probes and user ratings differ in level, so the base is first shifted by the weighted median difference over
    the cells that both have. The median ignores the few cells in which an expert has changed since the base was
    measured. Differences between experts in the base stay.
    """
    new, old = np.nan_to_num(table.mean), np.nan_to_num(base.mean)
    old = np.clip(old + level_difference(table, base), 0.0, 1.0)
    count = table.count + base.count
    squares = table.count * (np.nan_to_num(table.variance) + new**2)
    squares += base.count * (np.nan_to_num(base.variance) + old**2)
    nothing = np.full_like(count, np.nan)
    mean = np.divide(table.count * new + base.count * old, count, out=nothing.copy(), where=count > 0)
    variance = np.divide(squares, count, out=nothing, where=count > 0) - mean**2
    return ScoreTable(table.categories, table.experts, mean, np.maximum(variance, 0.0), count)


def level_difference(table: ScoreTable, base: ScoreTable) -> float:
    """The level of `table` less that of `base`: the weighted median difference over the cells that both have."""
    new, old = np.nan_to_num(table.mean), np.nan_to_num(base.mean)
    return _weighted_median(new - old, np.minimum(table.count, base.count))


def _weighted_median(values: Array, weights: Array) -> float:
    """The value at half of the total weight, interpolated between its neighbours; 0 without weight."""
    order = np.argsort(values, axis=None)
    value, weight = values.ravel()[order], weights.ravel()[order]
    if not weight.sum():
        return 0.0
    value, weight = value[weight > 0], weight[weight > 0]
    middle = (np.cumsum(weight) - weight / 2) / weight.sum()
    return float(np.interp(0.5, middle, value))
