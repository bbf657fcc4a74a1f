"""Fits the arms of declared and proposed recipes on recorded answers, and estimates their quality and cost.

An arm is one column of the plan: a recipe with its fitted policy. It stops at a price: the quality that one unit of
cost must add. `coe plan` uses it through `columns`, `coe benchmark` through `benchmark`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coe.recipes.agreement import Array
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.fit import Outcome, RecipeFit
from coe.recipes.fitting.judged import JudgedFit, Judgements
from coe.recipes.fitting.search import RecipeSearch
from coe.recipes.policy import RecipePolicy
from coe.registry.recipes import PROPOSED_PREFIX

SEARCHED_PRICES = (0.2, 0.1, 0.05, 0.035, 0.025, 0.016, 0.01, 0.004, 0.001)
"""Prices at which recipes are proposed: the quality that a call of median cost must add."""
DECLARED_PRICE = 0.016
"""Price of a declared recipe, like SEARCHED_PRICES."""
SAFER_PRICE = 0.004
"""Price of a declared recipe whose `max_loss` the probes do not show at DECLARED_PRICE."""
MIN_PSEUDO_COUNT, MAX_PSEUDO_COUNT = 1e-3, 1000.0
"""Limits of the fitted pseudo-count; a category without prompts needs some."""
COST_PSEUDO_COUNT = 30.0
"""Prompts of mean cost that a category's mean cost is shrunk by."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """A fitted policy and its outcome on the recorded prompts, by rules fitted on other prompts."""

    policy: RecipePolicy
    outcome: Outcome


def declared_arms(
    answers: Answers,
    recipe: str,
    steps: Sequence[Sequence[int]],
    judgements: Judgements | None = None,
    *,
    caps: Array | None = None,
    prices: Sequence[float] = (DECLARED_PRICE,),
) -> list[Arm]:
    """Fit a recipe whose steps are given as columns of `answers`; return an arm for each price.

    `caps` (n_experts,) are in tokens, inf without one; a recipe with a judge has none.
    """
    if judgements is None:
        fit = RecipeFit(answers, recipe=recipe, steps=steps, caps=caps)
    else:
        fit = JudgedFit(answers, judgements, recipe=recipe, steps=steps)
    return [Arm(*fit.policy(price / answers.typical_cost)) for price in prices]


def propose_arms(
    answers: Answers, *, max_calls: int, progress: Callable[[float], None] = lambda share: None
) -> list[Arm]:
    """Return the arms of the recipes that pay, one for each price; empty if single experts are best at every price.

    Recipes are named auto-1, auto-2, ... from the cheapest on. Several may have the same steps.
    """
    search = RecipeSearch(answers, max_calls=max_calls)
    fits: dict[tuple[int, ...], RecipeFit] = {}
    arms: list[Arm] = []
    for number, price in enumerate(SEARCHED_PRICES):
        progress(number / len(SEARCHED_PRICES))
        sequence = search.best_sequence(price / answers.typical_cost)
        if len(sequence) == 1:
            continue
        if sequence not in fits:
            fits[sequence] = RecipeFit(answers, recipe=PROPOSED_PREFIX, steps=[[member] for member in sequence])
        policy, outcome = fits[sequence].policy(price / answers.typical_cost)
        arms.append(Arm(replace(policy, recipe=f"{PROPOSED_PREFIX}{len(arms) + 1}"), outcome))
    return arms


def quality_by_category(answers: Answers, arms: Sequence[Arm]) -> Array:
    """Return the expected quality of each arm, shape (n_categories, n_arms)."""
    return expected_quality(answers, np.column_stack([arm.outcome.scores for arm in arms]))


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
