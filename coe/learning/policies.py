"""Policies as assignments make them: which expert each logged request would have gone to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import Experience
from coe.learning.estimation.off_policy import FOLDS, fold_of
from coe.mapping import Assignment
from coe.routing.exploration import propensities

Array = NDArray[np.float64]
Fit = Callable[[Experience], Assignment]


def worth(experience: Experience, assignment: Assignment) -> Array:
    """Expected quality less price of each expert for each request, shape (n, k); -inf where it may not answer.

    The same as `mapping.expected` gives one by one. The assignment has the experience's categories and experts.
    """
    may = np.isfinite(assignment.quality)
    values = experience.posterior.astype(np.float64) @ np.where(may, assignment.quality, 0.0) - assignment.price
    open_ = may[experience.posterior.argmax(axis=1)] & experience.allowed
    return np.where(open_ | ~open_.any(axis=1, keepdims=True) & experience.allowed, values, -np.inf)


def greedy(experience: Experience, assignment: Assignment) -> Array:
    """The policy that always takes the expert of highest worth, shape (n, k); those that tie share the request."""
    values = worth(experience, assignment)
    best = values == values.max(axis=1, keepdims=True)
    return np.asarray(best / best.sum(axis=1, keepdims=True))


def explored(experience: Experience, assignment: Assignment, *, rate: float, loss: float) -> Array:
    """The policy (n, k) that `exploration.choose` followed; an unmeasured expert counts as just within `loss`."""
    values = worth(experience, assignment)
    if assignment.unmeasured is not None:
        untried = assignment.unmeasured[experience.posterior.argmax(axis=1)] & experience.allowed
        values = np.where(untried, values.max(axis=1, keepdims=True) - loss, values)
    return propensities(values, rate=rate, loss=loss)


def cross_fitted(experience: Experience, fit: Fit) -> Array:
    """What the assignments of `fit` would choose for each request without having seen its fold, shape (n, k).

    An assignment judged on the very requests it was fitted to looks better than it is, the more the noisier it is.
    """
    fold, policy = fold_of(len(experience)), np.empty((len(experience), len(experience.experts)))
    for held in range(FOLDS):
        away = fold == held
        policy[away] = greedy(experience.part(away), fit(experience.part(~away)))
    return policy
