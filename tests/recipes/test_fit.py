"""Recipes fitted on recorded answers: weights, stopping rules, proposals, the bound on the loss, gains at a budget."""

from typing import Any

import numpy as np
import pytest

from coe.recipes.agreement import best_answer
from coe.recipes.fitting.benchmark import compare, recipe_report
from coe.recipes.fitting.fit import LEVEL, Answers, RecipeFit, fit_weights, loss_p_value, propose_arms, replayed
from tests.recipes.recorded import halves, recorded_answers, rows_of

THREE = recorded_answers({"a": (0.6, 0.5), "b": (0.6, 0.5), "c": (0.6, 0.5)}, {"a": 1.0, "b": 1.0, "c": 1.0})
CASCADE = recorded_answers({"a": (0.6, 0.4), "b": (0.6, 0.4), "large": (0.9, 0.8)}, {"a": 1.0, "b": 1.0, "large": 20.0})
POOL = recorded_answers(
    {"a": (0.6, 0.5), "b": (0.6, 0.5), "c": (0.55, 0.5), "large": (0.8, 0.75)},
    {"a": 1.0, "b": 1.0, "c": 1.0, "large": 12.0},
)

# ---------------------------------------------------------------------------------------------------------- weights


def test_a_vote_of_three_beats_its_members_with_probabilities_that_are_calibrated() -> None:
    train, test = halves(THREE)
    weights = fit_weights(train.classes, train.scores, train.labels, train.n_categories)
    found = weights.probabilities(test.classes, test.posterior)
    chosen, rows = best_answer(found, otherwise=0), np.arange(len(found))
    right, believed = test.scores[rows, chosen], found[rows, chosen]
    assert right.mean() > test.scores.mean(axis=0).max() + 0.05
    assert np.ptp(believed) > 0.3
    for quarter in np.array_split(np.argsort(believed), 4):
        assert believed[quarter].mean() == pytest.approx(right[quarter].mean(), abs=0.06)


# ------------------------------------------------------------------------------------------------------------- arms


def test_a_higher_price_stops_earlier_and_a_price_of_nothing_reaches_the_quality_of_the_last_step() -> None:
    fit = RecipeFit(CASCADE, [[0, 1], [2]])
    arms = [fit.arm(price) for price in (0.0, 0.01, 0.02, 0.1)]
    costs = [arm.costs.mean() for arm in arms]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 2
    assert arms[0].scores.mean() >= CASCADE.scores[:, 2].mean() - 0.005
    assert costs[1] < 0.9 * CASCADE.costs[:, 2].mean()


def test_a_policy_earns_on_new_prompts_what_it_was_estimated_to_earn() -> None:
    train, test = halves(CASCADE)
    arm = RecipeFit(train, [[0, 1], [2]]).arm(0.012)
    found = replayed(arm.policy, test)
    assert found.scores.mean() == pytest.approx(arm.scores.mean(), abs=0.035)
    assert found.costs.mean() == pytest.approx(arm.costs.mean(), rel=0.1)
    alone = [replayed(arm.policy, rows_of(test, np.array([row]))) for row in range(20)]
    assert [one.called[0].tolist() for one in alone] == found.called[:20].tolist()
    assert [one.scores[0] for one in alone] == found.scores[:20].tolist()


# -------------------------------------------------------------------------------------------------------- proposals


def test_proposed_recipes_hold_cheap_experts_before_a_large_one_and_no_two_have_the_same_members() -> None:
    arms = propose_arms(POOL, max_calls=4)
    assert list(arms) == [f"auto-{number}" for number in range(1, len(arms) + 1)]
    sequences = [arm.policy.members for arm in arms.values()]
    assert any(names[-1] == "large" and len(names) > 2 for names in sequences)
    assert max(len(names) for names in sequences) <= 4
    assert len({frozenset(names) for names in sequences}) == len(sequences) > 1


# -------------------------------------------------------------------------------------------- the bound on the loss


def losses(rate: float, *, prompts: int, seed: int) -> np.ndarray:
    """Losses of a recipe that disagrees on a tenth of the prompts, with this mean."""
    random = np.random.default_rng(seed)
    differs = random.random(prompts) < 0.1
    return np.where(differs, np.where(random.random(prompts) < 0.5 + 5 * rate, 1.0, -1.0), 0.0)


def test_a_recipe_that_breaks_the_bound_is_accepted_in_at_most_one_of_twenty_calibrations() -> None:
    accepted = sum(loss_p_value(losses(0.02, prompts=800, seed=seed), 0.02) <= LEVEL for seed in range(400))
    assert accepted <= 0.05 * 400


@pytest.mark.parametrize(("prompts", "max_loss", "shown"), [(1500, 0.01, True), (100, 0.01, False), (0, 0.5, False)])
def test_a_recipe_that_loses_nothing_is_accepted_with_enough_prompts(
    prompts: int, max_loss: float, shown: bool
) -> None:
    assert (loss_p_value(np.zeros(prompts), max_loss) <= LEVEL) == shown


# ------------------------------------------------------------------------------------------------ gain at a budget


def report_of(train: Answers, test: Answers, *, splits: int = 1) -> dict[str, Any]:
    quality = np.stack([train.scores[train.labels == row].mean(axis=0) for row in range(train.n_categories)])
    found = compare(train, test, test.posterior, quality=quality, max_calls=4)
    return recipe_report([found] * splits, [np.arange(len(test.labels))] * splits)


def test_recipes_gain_at_a_budget_and_a_prompt_of_several_splits_counts_once_for_the_error() -> None:
    once, thrice = (report_of(*halves(POOL), splits=splits) for splits in (1, 3))
    half = once["at_shares_of_best_single"]["0.5"]
    assert half["gain"] > 0.03
    assert once["no_budget"]["recipes"] > once["no_budget"]["single"]
    assert once["cost_share_for_best_single_quality"] < 0.9
    assert once["worst_gain"] > -0.01
    same = thrice["at_shares_of_best_single"]["0.5"]
    assert (same["gain"], same["standard_error"]) == pytest.approx((half["gain"], half["standard_error"]))
