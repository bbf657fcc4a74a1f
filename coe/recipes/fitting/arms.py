"""Estimates the quality and the cost of a recipe's arm by category, from its outcome on recorded answers."""

from __future__ import annotations

import numpy as np

from coe.recipes.agreement import Array
from coe.recipes.fitting.answers import Answers

MIN_PSEUDO_COUNT, MAX_PSEUDO_COUNT = 1e-3, 1000.0
"""Limits of the fitted pseudo-count; a category without prompts needs some."""
COST_PSEUDO_COUNT = 30.0
"""Prompts of mean cost that a category's mean cost is shrunk by."""


def expected_quality(answers: Answers, scores: Array) -> Array:
    """Return the expected quality of arms, shape (n_categories, n_arms), from their `scores` (n_prompts, n_arms).

    It is the quality of the best single expert, plus the arm's gain over it, both shrunk towards their mean over
    categories. Gains differ much less between categories than qualities do, so they are shrunk more: an arm is not
    preferred for a lucky category.
    """
    best = answers.scores[:, [int(answers.scores.mean(axis=0).argmax())]]
    gains = scores - best
    return _shrunk(best, answers, _pseudo_count(best, answers)) + _shrunk(gains, answers, _pseudo_count(gains, answers))


def cost_by_category(answers: Answers, costs: Array, *, relative: Array | float = 1.0) -> Array:
    """Return the expected cost of each column (n_categories, n_columns) from its cost on each prompt.

    `relative` (n_categories, n_columns) is how much more than the mean of all prompts a category is expected to cost
    before its prompts are seen.
    """
    return _shrunk(costs, answers, np.full(costs.shape[1], COST_PSEUDO_COUNT), relative)


def relative_use(use: Array, answers: Answers, calls: Array) -> Array:
    """Return how much more than on average arms use in each category by their calls, shape (n_categories, n_arms).

    `use` (n_categories, n_experts) is that of the experts, `calls` (n_arms, n_experts) the mean calls of each arm. It
    is 1 where the use of a member is unknown.
    """
    by_category = np.column_stack([use[:, made > 0] @ made[made > 0] for made in calls])
    mean = by_category[answers.labels].mean(axis=0)
    known = np.isfinite(by_category) & (mean > 0)
    return np.asarray(np.divide(by_category, mean, out=np.ones_like(by_category), where=known))


def _shrunk(values: Array, answers: Answers, pseudo_count: Array, relative: Array | float = 1.0) -> Array:
    """Return means by category (n_categories, n_columns), shrunk towards `relative` times the mean of all prompts."""
    sums, counts = answers.posterior.T @ values, answers.posterior.sum(axis=0)[:, None]
    return np.asarray((sums + pseudo_count * values.mean(axis=0) * relative) / (counts + pseudo_count))


def _pseudo_count(values: Array, answers: Answers) -> Array:
    """Return the empirical Bayes pseudo-count of each column: variance within categories over variance between them."""
    counts = answers.posterior.sum(axis=0)
    found = (answers.posterior.T @ values) / np.maximum(counts, 1.0)[:, None]
    within = ((values - found[answers.labels]) ** 2).sum(axis=0) / max(len(values) - answers.n_categories, 1)
    spread = counts @ (found - values.mean(axis=0)) ** 2 / len(values)
    between = spread - within * (np.count_nonzero(counts) - 1) / len(values)
    return np.asarray(np.clip(within / np.maximum(between, 1e-12), MIN_PSEUDO_COUNT, MAX_PSEUDO_COUNT))
