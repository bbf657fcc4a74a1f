"""Recipes fitted on recorded answers: weights, stopping rules, proposals, the bound on the loss, gains at a budget."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.recipes.agreement import NO_ANSWER, answer_classes, best_answer
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.arms import cost_by_category, expected_quality, relative_use
from coe.recipes.fitting.benchmark import Trace, compare, recipe_report
from coe.recipes.fitting.fit import RecipeFit, fit_weights, replayed
from coe.recipes.fitting.max_loss import LEVEL, accepted_thresholds, loss_p_value
from coe.recipes.fitting.search import propose_arms
from tests.recipes.recorded import halves, recorded_answers

THREE = recorded_answers({"a": (0.6, 0.5), "b": (0.6, 0.5), "c": (0.6, 0.5)}, {"a": 1.0, "b": 1.0, "c": 1.0})
CASCADE = recorded_answers({"a": (0.6, 0.4), "b": (0.6, 0.4), "large": (0.9, 0.8)}, {"a": 1.0, "b": 1.0, "large": 20.0})
POOL = recorded_answers(
    {"a": (0.6, 0.5), "b": (0.6, 0.5), "c": (0.55, 0.5), "large": (0.8, 0.75)},
    {"a": 1.0, "b": 1.0, "c": 1.0, "large": 12.0},
)

# ---------------------------------------------------------------------------------------------------------- weights


def test_equal_answers_have_equal_classes_and_missing_ones_have_none() -> None:
    assert answer_classes(["b", None, "c", "b"]).tolist() == [0, NO_ANSWER, 2, 0]


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


def test_a_better_member_has_a_larger_weight_in_the_categories_where_it_is_better() -> None:
    answers = recorded_answers({"code": (0.9, 0.3), "law": (0.3, 0.9)}, {"code": 1.0, "law": 1.0})
    weights = fit_weights(answers.classes, answers.scores, answers.labels, answers.n_categories)
    code, law = weights.member[:, 1:]
    assert code[0] > law[0]
    assert law[1] > code[1]


def test_members_without_an_answer_start_no_class_and_the_others_decide() -> None:
    weights = fit_weights(THREE.classes, THREE.scores, THREE.labels, 0)
    classes = np.array([[NO_ANSWER, 5, 5], [NO_ANSWER, NO_ANSWER, NO_ANSWER]])
    found = weights.probabilities(classes, np.zeros((2, 0)))
    assert found[0, 0] == 0
    assert best_answer(found, otherwise=2).tolist() == [1, 2]
    assert found[1].tolist() == [0, 0, 0, 1]


def test_several_right_answers_of_one_prompt_share_its_probability() -> None:
    classes = np.tile([0, 1], (500, 1))
    weights = fit_weights(classes, np.ones((500, 2)), np.zeros(500, dtype=np.int64), 0)
    assert weights.probabilities(classes[:1], np.zeros((1, 0)))[0, :2] == pytest.approx([0.5, 0.5], abs=0.02)


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
    alone = [replayed(arm.policy, test.rows(np.array([row]))) for row in range(20)]
    assert [one.called[0].tolist() for one in alone] == found.called[:20].tolist()
    assert [one.scores[0] for one in alone] == found.scores[:20].tolist()


def test_long_answers_that_are_less_often_right_go_on_more_often() -> None:
    random = np.random.default_rng(1)
    long = random.random(3000) < 0.5
    right = random.random(3000) < np.where(long, 0.3, 0.9)
    answers = replace(
        recorded_answers({"a": (0.5,), "large": (0.95,)}, {"a": 1.0, "large": 4.0}),
        tokens=np.column_stack((np.where(long, 800.0, 100.0), np.full(3000, 100.0))),
    )
    answers.scores[:, 0] = right
    answers.classes[:, 0] = np.where(right, 0, 5)
    called = replayed(RecipeFit(answers, [[0], [1]]).arm(0.05).policy, answers).called[:, 1]
    assert called[long].mean() > 0.9
    assert called[~long].mean() < 0.1


def test_where_no_answer_is_readable_the_latest_step_is_returned() -> None:
    unreadable = replace(CASCADE, classes=np.full_like(CASCADE.classes, NO_ANSWER))
    arm = RecipeFit(unreadable, [[0, 1], [2]]).arm(0.0)
    assert replayed(arm.policy, unreadable).scores.tolist() == arm.scores.tolist() == CASCADE.scores[:, 2].tolist()


def test_a_lucky_category_hardly_raises_the_expected_quality_of_an_arm() -> None:
    few = POOL.rows(np.arange(60))
    scores = RecipeFit(few, [[0, 1, 2]]).arm(0.016).scores
    best = few.scores[:, few.scores.mean(axis=0).argmax()]
    raw = [(scores - best)[few.labels == row].mean() for row in range(2)]
    expected = expected_quality(few, np.column_stack((scores, best)))
    assert np.ptp(expected[:, 0] - expected[:, 1]) < 0.5 * np.ptp(raw)


def test_costs_follow_the_category_and_in_a_rare_one_those_of_the_members() -> None:
    costs = np.where(POOL.labels == 0, 1.0, 3.0)[:, None]
    assert cost_by_category(POOL, costs)[:, 0] == pytest.approx([1.0, 3.0], abs=0.1)
    rows = np.concatenate((np.flatnonzero(POOL.labels == 0), np.flatnonzero(POOL.labels == 1)[:10]))
    few = replace(POOL, costs=np.where(POOL.labels == 1, 10.0, 1.0)[:, None] * POOL.costs).rows(rows)
    spent = few.costs[:, :3].sum(axis=1)[:, None]
    relative = relative_use(cost_by_category(few, few.costs), few, np.array([[1.0, 1.0, 1.0, 0.0]]))
    common, rare = cost_by_category(few, spent, relative=relative)[:, 0]
    assert common == pytest.approx(3.0, abs=0.1)
    assert 1.3 * cost_by_category(few, spent)[1, 0] < rare < 30.0


# -------------------------------------------------------------------------------------------------------- proposals


def test_proposed_recipes_hold_cheap_experts_before_a_large_one_and_no_two_have_the_same_members() -> None:
    arms = propose_arms(POOL, max_calls=4)
    assert list(arms) == [f"auto-{number}" for number in range(1, len(arms) + 1)]
    sequences = [arm.policy.members for arm in arms.values()]
    assert any(names[-1] == "large" and len(names) > 2 for names in sequences)
    assert max(len(names) for names in sequences) <= 4
    assert len({frozenset(names) for names in sequences}) == len(sequences) > 1


def test_nothing_is_proposed_where_all_experts_give_the_same_answers() -> None:
    same = recorded_answers({"a": (0.6, 0.5)}, {"a": 1.0})
    classes, scores, tokens = (np.repeat(values, 2, axis=1) for values in (same.classes, same.scores, same.tokens))
    costs = np.tile([1.0, 2.0], (len(same.labels), 1))
    twins = Answers(("a", "b"), classes, scores, costs, tokens, same.labels, same.n_categories)
    assert propose_arms(twins, max_calls=4) == {}


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


def test_the_first_threshold_that_fails_ends_the_sequence() -> None:
    good, bad = np.zeros(1500), np.full(1500, 0.5)
    assert accepted_thresholds([good, good, bad, good], 0.02) == 2
    assert accepted_thresholds([bad, good], 0.02) == accepted_thresholds([], 0.02) == 0


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


def test_a_budget_between_two_prices_mixes_them() -> None:
    trace = Trace(np.array([4.0, 2.0, 1.0]), np.array([[1, 1], [1, 0], [0, 0]], dtype=np.float32))
    for cost, scores in ((9.0, [1, 1]), (4.0, [1, 1]), (3.0, [1, 0.5]), (1.5, [0.5, 0]), (0.5, [0, 0])):
        assert trace.at(cost).tolist() == scores
    assert (trace.cost_to_reach(0.5), trace.cost_to_reach(1.1)) == (2.0, float("inf"))


def test_free_text_that_never_agrees_does_not_lose_against_single_experts() -> None:
    train, test = (replace(half, classes=np.full_like(half.classes, NO_ANSWER)) for half in halves(POOL))
    assert report_of(train, test)["worst_gain"] > -0.002


def test_where_nothing_has_a_known_cost_only_plans_without_a_budget_are_compared() -> None:
    train, test = (replace(half, costs=np.zeros_like(half.costs)) for half in halves(POOL))
    report = report_of(train, test)
    assert report["no_budget"]["gain"] == report["worst_gain"] > 0
    assert "at_shares_of_best_single" not in report
