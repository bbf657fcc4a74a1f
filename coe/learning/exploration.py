"""Sends exploration where it can change the plan: to experts that may be better than the chosen one.

The declared rate is the share of all requests that explore. Experts within the declared loss keep a part of it, so that
the log still shows one that changes. What that leaves goes, in each category, to the one expert with the largest
expected improvement: how much better than the chosen expert it is expected to be where it is better. Evidence needs
many answers of one expert, so a second one waits. Arrays have m categories and k experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.learning.refit import Refit
from coe.planning.assignment import Assignment

Array = NDArray[np.float64]

KEPT = 0.15
"""Part of the declared rate that every category keeps."""
MAX_RATE = 0.4
"""Largest share of a category's requests that explore, where the declared rate is smaller."""
PRIOR_SCORES, DEVIATION = 10.0, 0.42
"""Ratings that the plan's own quality counts for, few because it is what may have changed, and the deviation of one."""
MIN_MOVED = 0.25
"""Share of the exploration that has to go elsewhere before a plan is promoted for it."""


def exploration_weights(assignment: Assignment, refit: Refit, mix: Array, *, rate: float, loss: float) -> Array:
    """Return the multiples (m, k) of the declared `rate` at which each expert besides the chosen one is explored.

    Experts within `loss` of the chosen one are explored, by what is known now, and those that were never measured.
    `mix` (m,) is the share of each category in the requests.
    """
    from scipy.stats import norm

    chosen = np.array([assignment.experts.index(name) for name in assignment.choice])[:, None]

    def lead(values: Array) -> Array:
        return values - np.take_along_axis(values, chosen, axis=1)

    is_measured, count = np.isfinite(assignment.quality), refit.feedback.count
    explored = is_measured & (lead(refit.quality - assignment.price) >= -loss)
    if assignment.unmeasured is not None:
        explored |= assignment.unmeasured
    np.put_along_axis(explored, chosen, False, axis=1)
    believed = np.where(is_measured, assignment.quality + refit.level, refit.quality)
    rated = np.nan_to_num(refit.feedback.mean) * count
    gain = lead((rated + PRIOR_SCORES * believed) / (count + PRIOR_SCORES) - assignment.price)
    variance = DEVIATION**2 / (count + PRIOR_SCORES)
    spread = np.sqrt(variance + np.take_along_axis(variance, chosen, axis=1))
    improvement = np.where(explored, gain * norm.cdf(gain / spread) + spread * norm.pdf(gain / spread), 0.0)
    improvement *= improvement == improvement.max(axis=1, keepdims=True)
    weights = explored * (KEPT / np.maximum(explored.sum(axis=1, keepdims=True), 1))
    most = max(MAX_RATE / rate, 1.0)
    for _ in range(len(mix)):  # what a full category cannot take goes to the others
        open_to = improvement * (weights.sum(axis=1, keepdims=True) < most - 1e-9)
        left, total = 1.0 - float(mix @ weights.sum(axis=1)), float(mix @ open_to.sum(axis=1))
        if left <= 1e-9 or total <= 1e-12:
            break
        extra = open_to * (left / total)
        room = most - weights.sum(axis=1, keepdims=True)
        weights += extra * np.minimum(room / np.maximum(extra.sum(axis=1, keepdims=True), 1e-12), 1.0)
    return np.asarray(weights)


def newly_explored(assignment: Assignment, weights: Array, mix: Array) -> str:
    """Return the cells that the weights explore most, as text; empty where little of it would move."""
    if not weights.any():
        return ""
    if assignment.exploration is not None:
        moved = float(mix @ np.maximum(weights - assignment.exploration, 0.0).sum(axis=1))
        if moved < MIN_MOVED * float(mix @ weights.sum(axis=1)):
            return ""
    most = np.argsort(-(weights * mix[:, None]), axis=None)[:3]
    cells = (np.unravel_index(cell, weights.shape) for cell in most)
    return ", ".join(f"{assignment.experts[e]} in {assignment.categories[c]}" for c, e in cells if weights[c, e] > 0)
