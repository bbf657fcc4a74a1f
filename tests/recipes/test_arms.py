"""Arms that are proposed for a plan, and the comparison of both plans."""

from dataclasses import replace

import numpy as np
import pytest

from coe.recipes.agreement import NO_ANSWER
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.arms import cost_by_category, declared_arms, propose_arms, quality_by_category
from coe.recipes.fitting.benchmark import Trace, arm_costs, compare, recipe_report
from tests.recipes.recorded import halves, recorded_answers

POOL = recorded_answers(
    {"a": (0.6, 0.5), "b": (0.6, 0.5), "c": (0.55, 0.5), "large": (0.8, 0.75)},
    {"a": 1.0, "b": 1.0, "c": 1.0, "large": 12.0},
)


def quality_of(answers: Answers) -> np.ndarray:
    return np.stack([answers.scores[answers.labels == row].mean(axis=0) for row in range(answers.n_categories)])


def test_proposed_recipes_hold_cheap_experts_before_a_large_one() -> None:
    arms = propose_arms(POOL, max_calls=4)
    sequences = {arm.policy.members for arm in arms}
    assert any(names[-1] == "large" and len(names) > 2 for names in sequences)
    assert max(len(names) for names in sequences) <= 4
    assert [arm.policy.recipe for arm in arms] == [f"auto-{number + 1}" for number in range(len(arms))]
    prices = [arm.policy.price for arm in arms]
    assert prices == sorted(prices, reverse=True)


def test_nothing_is_proposed_where_all_experts_give_the_same_answers() -> None:
    same = recorded_answers({"a": (0.6, 0.5)}, {"a": 1.0})
    twins = Answers(
        ("a", "b"),
        np.repeat(same.classes, 2, axis=1),
        np.repeat(same.scores, 2, axis=1),
        np.tile([1.0, 2.0], (len(same.labels), 1)),
        np.repeat(same.tokens, 2, axis=1),
        same.labels,
        same.n_categories,
    )
    assert propose_arms(twins, max_calls=4) == []


def test_a_declared_cascade_costs_more_at_a_lower_price_and_a_vote_of_one_step_calls_all() -> None:
    cheap, dear = declared_arms(POOL, "careful", [[0, 1], [3]], prices=(0.05, 0.004))
    assert cheap.outcome.costs.mean() < dear.outcome.costs.mean()
    (vote,) = declared_arms(POOL, "panel", [[0, 1, 2]])
    assert set(vote.outcome.calls) == {3.0}


def test_a_lucky_category_hardly_raises_the_expected_quality_of_an_arm() -> None:
    few = POOL.rows(np.arange(60))
    arms = declared_arms(few, "panel", [[0, 1, 2]])
    expected = quality_by_category(few, arms)
    best = few.scores[:, few.scores.mean(axis=0).argmax()]
    gain = arms[0].outcome.scores - best
    raw = [gain[few.labels == row].mean() for row in range(2)]
    base = quality_by_category(few, [type(arms[0])(arms[0].policy, type(arms[0].outcome)(best, best, best, ()))])
    shrunk = (expected - base)[:, 0]
    assert np.ptp(shrunk) < 0.5 * np.ptp(raw)


def test_costs_follow_the_category() -> None:
    costs = np.where(POOL.labels == 0, 1.0, 3.0)[:, None]
    assert cost_by_category(POOL, costs)[:, 0] == pytest.approx([1.0, 3.0], abs=0.1)


def test_in_a_rare_category_an_arm_is_expected_to_cost_as_much_more_as_its_members() -> None:
    rows = np.concatenate((np.flatnonzero(POOL.labels == 0), np.flatnonzero(POOL.labels == 1)[:10]))
    few = replace(POOL, costs=np.where(POOL.labels == 1, 10.0, 1.0)[:, None] * POOL.costs).rows(rows)
    (arm,) = declared_arms(few, "panel", [[0, 1, 2]])
    alone = cost_by_category(few, arm.outcome.costs[:, None])
    common, rare = arm_costs(cost_by_category(few, few.costs), few, [arm])[:, 0]
    assert common == pytest.approx(3.0, abs=0.1)
    assert 1.3 * alone[1, 0] < rare < 30.0


def test_recipes_gain_at_a_budget_and_the_report_says_by_how_much() -> None:
    train, test = halves(POOL)
    found = compare(train, test, test.posterior, quality=quality_of(train), max_calls=4)
    report = recipe_report([found, found], [np.arange(len(test.labels))] * 2)
    assert report["at_shares_of_best_single"]["0.5"]["gain"] > 0.03
    assert report["no_budget"]["recipes"] > report["no_budget"]["single"]
    assert report["cost_share_for_best_single_quality"] < 0.9
    assert report["worst_gain"] > -0.01


def test_the_error_of_a_gain_counts_a_prompt_of_several_splits_once() -> None:
    train, test = halves(POOL)
    found = compare(train, test, test.posterior, quality=quality_of(train), max_calls=4)
    prompts = np.arange(len(test.labels))
    once, thrice = (recipe_report([found] * n, [prompts] * n) for n in (1, 3))
    gain = found.recipes.at(0.5 * found.best_cost) - found.single.at(0.5 * found.best_cost)
    for report in (once, thrice):
        half = report["at_shares_of_best_single"]["0.5"]
        assert half["standard_error"] == pytest.approx(gain.std(ddof=1) / len(gain) ** 0.5)
        assert half["gain"] == pytest.approx(gain.mean())


def test_a_budget_between_two_prices_mixes_them() -> None:
    trace = Trace(np.array([4.0, 2.0, 1.0]), np.array([[1, 1], [1, 0], [0, 0]], dtype=np.float32))
    for cost, scores in ((9.0, [1, 1]), (4.0, [1, 1]), (3.0, [1, 0.5]), (1.5, [0.5, 0]), (0.5, [0, 0])):
        assert trace.at(cost).tolist() == scores
    assert (trace.cost_to_reach(0.5), trace.cost_to_reach(1.1)) == (2.0, float("inf"))


def test_free_text_that_never_agrees_does_not_lose_against_single_experts() -> None:
    train, test = halves(POOL)
    unreadable = [
        Answers(
            one.experts,
            np.full_like(one.classes, NO_ANSWER),
            one.scores,
            one.costs,
            one.tokens,
            one.labels,
            one.n_categories,
        )
        for one in (train, test)
    ]
    found = compare(*unreadable, test.posterior, quality=quality_of(train), max_calls=4)
    assert recipe_report([found], [np.arange(len(unreadable[1].labels))])["worst_gain"] > -0.002


def test_where_nothing_has_a_known_cost_only_plans_without_a_budget_are_compared() -> None:
    train, test = (replace(half, costs=np.zeros_like(half.costs)) for half in halves(POOL))
    found = compare(train, test, test.posterior, quality=quality_of(train), max_calls=4)
    report = recipe_report([found], [np.arange(len(test.labels))])
    assert report["no_budget"]["gain"] > 0
    assert report["worst_gain"] == report["no_budget"]["gain"]
    assert "at_shares_of_best_single" not in report
