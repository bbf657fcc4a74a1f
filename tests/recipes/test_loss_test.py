"""The test in service of what a recipe may lose: its error probability, its power, and what it rests on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.experts.recipes.agreement import NO_ANSWER
from coe.experts.recipes.judge import default_rule
from coe.learning.recipes.arms import declared_arms
from coe.learning.recipes.fit import against_last_step
from coe.learning.recipes.max_loss import LIMIT, LossTest, capital, loss_per_difference, upper_mean
from tests.recipes.recorded import recorded_answers

RUNS, AUDITED = 400, 5_000


def largest_capital(*, true_rate: float, rate: float, seed: int) -> np.ndarray:
    """The largest capital of each run, at any time, where answers differ at the true rate."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(RUNS):
        differed = np.cumsum(random.random(AUDITED) < true_rate)
        found.append(capital(np.arange(1, AUDITED + 1), differed, rate).max())
    return np.array(found)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_a_recipe_at_its_bound_is_taken_back_in_at_most_one_of_twenty_runs(rate: float) -> None:
    assert (largest_capital(true_rate=rate, rate=rate, seed=1) >= LIMIT).sum() <= 0.05 * RUNS


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_twice_the_bound_is_found(rate: float) -> None:
    assert (largest_capital(true_rate=2 * rate, rate=rate, seed=2) >= LIMIT).mean() > 0.99


@settings(max_examples=60)
@given(
    st.floats(0.001, 0.99),
    st.integers(0, 300),
    st.data(),
)
def test_no_answer_raises_the_expected_capital_at_the_bound(rate: float, audited: int, data: st.DataObject) -> None:
    """The capital is a martingale where answers differ at the rate of the bound, and a supermartingale below it."""
    differed = data.draw(st.integers(0, audited))
    now = float(capital(audited, differed, rate))
    for true_rate in (rate, rate / 2):
        after = true_rate * float(capital(audited + 1, differed + 1, rate))
        after += (1 - true_rate) * float(capital(audited + 1, differed, rate))
        assert after <= now * (1 + 1e-9)


def test_answers_that_do_not_differ_never_break_the_bound() -> None:
    test = LossTest(0.01, 0.5)
    for _ in range(500):
        test.add(differs=False)
    assert (test.largest, test.loss, test.broken) == (1.0, 0.0, False)


def test_a_broken_bound_stays_broken() -> None:
    test = LossTest(0.01, 0.5)
    for number in range(600):
        test.add(differs=number < 20)
    assert capital(test.audited, test.differed, test.rate) < LIMIT
    assert test.broken
    assert test.loss == pytest.approx(0.5 * 20 / 600)


@pytest.mark.parametrize("cost", [0.0, 0.01])
def test_differences_that_cost_less_than_the_bound_cannot_break_it(cost: float) -> None:
    test = LossTest(0.01, cost)
    for _ in range(100):
        test.add(differs=True)
    assert not test.broken


# ------------------------------------------------------------------------------------------- what a difference costs


def test_the_upper_bound_of_a_mean_holds_in_nineteen_of_twenty_samples() -> None:
    random = np.random.default_rng(0)
    held = sum(upper_mean((random.random(200) < 0.1).astype(float)) >= 0.1 for _ in range(200))
    assert held >= 0.95 * 200


def test_more_prompts_bring_the_upper_bound_closer() -> None:
    few, many = (upper_mean(np.tile([1.0, 0.0, 0.0, 0.0], count)) for count in (10, 200))
    assert 0.25 < many < few < 0.7
    assert upper_mean(np.empty(0)) == 1.0


def test_the_loss_per_difference_lies_above_its_mean_unless_the_certified_bound_is_lower() -> None:
    random = np.random.default_rng(1)
    differs = random.random(2_000) < 0.1
    losses = np.where(differs, np.where(random.random(2_000) < 0.6, 1.0, -1.0), 0.0)
    loose = loss_per_difference(losses, differs, 0.5)
    assert losses[differs].mean() < loose < 0.6
    tight = loss_per_difference(losses, differs, 0.03)
    assert tight < loose
    assert 0.03 / tight > 0.1  # answers that differ as often as on these prompts keep the bound


def test_without_a_difference_one_may_cost_everything() -> None:
    assert loss_per_difference(np.zeros(60), np.zeros(60, dtype=bool), 0.2) == 1.0


def test_an_unreadable_answer_that_was_accepted_early_is_no_difference_that_an_audit_finds() -> None:
    """A judge accepts half of the answers, all of them free text; the others go on to the last step."""
    answers = recorded_answers({"small": (0.6,), "large": (0.9,)}, {"small": 1.0, "large": 9.0}, prompts=300)
    steps, n_prompts = [[0], [1]], len(answers.labels)
    grades = np.full((n_prompts, 2), np.nan)
    grades[:, 0] = np.where(np.arange(n_prompts) % 2, 10.0, 0.0)
    fitted = declared_arms(answers, "graded", steps)[0].policy
    rule = default_rule(answers.n_categories)
    policy = replace(fitted, judge="j", steps=(replace(fitted.steps[0], graded=rule), fitted.steps[1]))
    unreadable = replace(answers, classes=np.full_like(answers.classes, NO_ANSWER))
    loss, differs, is_audited = against_last_step(policy, unreadable, grades)
    assert is_audited.tolist() == (grades[:, 0] == 0).tolist()
    assert not differs[is_audited].any()
    assert np.abs(loss[~is_audited]).sum() > 0  # the plan's own bound still counts it
    _, differs, is_audited = against_last_step(policy, answers, grades)
    assert is_audited.all()
    assert differs.any()
