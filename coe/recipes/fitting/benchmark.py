"""Measures the gain of recipes over single experts on recorded answers, at every budget.

On each random 70/30 split, the router, the scores and the recipes are fitted on the larger part. The other part is
routed as in service. The cost of an answer is active parameters (in billions) x output tokens (in thousands).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.measuring.quality import paired_difference
from coe.recipes.agreement import Array
from coe.recipes.fitting.columns import cost_by_category, expected_quality, relative_use
from coe.recipes.fitting.fit import Answers, propose_arms, replayed

PRICES = (0.0, *(float(price) for price in np.geomspace(3e-4, 3.0, 120)))
"""Lagrange multipliers of the budget at which both plans are compared: the gain in quality that is required for an
additional cost of one typical answer."""
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Budgets as shares of the cost of the best single model."""
MAX_CALLS = 6
"""Calls of one proposed recipe."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Results of the routed test prompts at each price, lowest price first.

    `costs` (n_prices,) are means over the prompts. `scores` has shape (n_prices, n_prompts).
    """

    costs: Array
    scores: NDArray[np.float32]

    def at(self, cost: float) -> Array:
        """Return the expected scores (n_prompts,) at a budget, interpolated between the two neighbouring prices."""
        order = np.argsort(self.costs, kind="stable")
        position = float(np.interp(cost, self.costs[order], np.arange(len(order))))
        low = int(position)
        share = position - low
        below, above = self.scores[order[[low, min(low + 1, len(order) - 1)]]].astype(np.float64)
        mixed: Array = (1 - share) * below + share * above
        return mixed

    def cost_to_reach(self, score: float) -> float:
        """Return the smallest cost with at least this mean score; infinite if no price reaches it."""
        reached = self.costs[self.scores.mean(axis=1, dtype=np.float64) >= score]
        return float(reached.min()) if len(reached) else float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class SplitComparison:
    """Both plans on one split: their traces, the best single model's cost and score, and the proposed recipes."""

    single: Trace
    recipes: Trace
    best_cost: float
    best_score: float
    proposed: tuple[str, ...]


def _trace(estimates: tuple[Array, Array], results: tuple[Array, Array], posterior: Array, unit: float) -> Trace:
    """Route the test prompts at each price.

    `estimates` are the plan's quality and cost of its columns, (n_categories, n_columns), `results` the scores and the
    costs of the columns on the test prompts, (n_prompts, n_columns). `unit` is the typical cost of an answer.
    """
    quality, cost = estimates
    prompts = np.arange(len(posterior))
    chosen = [(posterior @ (quality - price / unit * cost)).argmax(axis=1) for price in PRICES]
    scores, costs = ([values[prompts, columns] for columns in chosen] for values in results)
    return Trace(np.mean(costs, axis=1), np.array(scores, dtype=np.float32))


def compare(
    train: Answers,
    test: Answers,
    posterior: Array,
    *,
    quality: Array,
    max_calls: int = MAX_CALLS,
) -> SplitComparison:
    """Compare single experts with recipes that are proposed from `train`, on `test` with its router `posterior`.

    `quality` (n_categories, n_experts) is the plan's expected quality of single experts.
    """
    arms = list(propose_arms(train, max_calls=max_calls).values())
    cost = cost_by_category(train, train.costs)
    single = recipes = _trace((quality, cost), (test.scores, test.costs), posterior, train.typical_cost)
    if arms:
        outcomes = [replayed(arm.policy, test, posterior) for arm in arms]
        calls = np.stack([replayed(arm.policy, train).called.mean(axis=0) for arm in arms])
        relative = relative_use(cost, train, calls)
        gained = expected_quality(train, np.column_stack([arm.scores for arm in arms]))
        spent = cost_by_category(train, np.column_stack([arm.costs for arm in arms]), relative=relative)
        scores = np.column_stack((test.scores, *(found.scores for found in outcomes)))
        costs = np.column_stack((test.costs, *(found.costs for found in outcomes)))
        estimates = np.column_stack((quality, gained)), np.column_stack((cost, spent))
        recipes = _trace(estimates, (scores, costs), posterior, train.typical_cost)
    best = int(train.scores.mean(axis=0).argmax())
    return SplitComparison(
        single,
        recipes,
        float(test.costs[:, best].mean()),
        float(test.scores[:, best].mean()),
        tuple(" > ".join(arm.policy.members) for arm in arms),
    )


def recipe_report(splits: Sequence[SplitComparison], prompts: Sequence[NDArray[np.integer]]) -> dict[str, Any]:
    """Return the JSON-able report: paired gains at each budget with their standard errors, clustered by prompt.

    `prompts` has the indices of each split's test prompts (n_prompts,). `worst_gain` is the lowest mean gain over all
    compared budgets.
    """
    unlimited = _paired([(split.single.scores[0], split.recipes.scores[0]) for split in splits], prompts)
    found = {
        "no_budget": unlimited,
        "best_single": float(np.mean([split.best_score for split in splits])),
        "worst_gain": unlimited["gain"],
        "proposed": [list(split.proposed) for split in splits],
    }
    best = [split.best_cost for split in splits]
    if not all(best):  # nothing has a known cost, so there is no budget to compare at
        return found

    def at(units: Sequence[float], share: float) -> Mapping[str, Any]:
        budgets = [share * unit for unit in units]
        pairs = [(one.single.at(cost), one.recipes.at(cost)) for one, cost in zip(splits, budgets, strict=True)]
        return _paired(pairs, prompts)

    free = [float(split.single.costs[0]) for split in splits]
    swept = [at(free, float(share)) for share in np.geomspace(0.05, 4.0, 40)]
    reach = [split.recipes.cost_to_reach(split.best_score) / split.best_cost for split in splits]
    return found | {
        "at_shares_of_best_single": {f"{share:g}": at(best, share) for share in SHARES},
        "cost_share_for_best_single_quality": float(np.median(reach)),
        "worst_gain": min(unlimited["gain"], *(one["gain"] for one in swept)),
    }


def _paired(
    scores: Sequence[tuple[NDArray[np.floating], NDArray[np.floating]]], prompts: Sequence[NDArray[np.integer]]
) -> Mapping[str, Any]:
    """Return the means of both, their paired difference, its standard error by prompt, and what it shows.

    `scores` has for each split the prompts' scores of single experts and of recipes.
    """
    single, recipes = ([np.asarray(pair[side], dtype=np.float64) for pair in scores] for side in (0, 1))
    found = paired_difference(recipes, single, prompts)
    return {
        "single": float(np.concatenate(single).mean()),
        "recipes": float(np.concatenate(recipes).mean()),
        "gain": found.value,
        "standard_error": found.error,
        "verdict": found.verdict,
    }
