"""Answer weights and stopping rules, fitted on recorded answers."""

from dataclasses import replace

import numpy as np
import pytest

from coe.recipes.agreement import NO_ANSWER, answer_classes, best_answer
from coe.recipes.fitting.agreement_weights import fold_probabilities, fold_weights
from coe.recipes.fitting.answers import FOLDS
from coe.recipes.fitting.fit import RecipeFit, fit_weights, held_out_probabilities, held_out_weights
from coe.recipes.policy import replay
from tests.recipes.recorded import halves, recorded_answers

THREE = recorded_answers({"a": (0.6, 0.5), "b": (0.6, 0.5), "c": (0.6, 0.5)}, {"a": 1.0, "b": 1.0, "c": 1.0})
CASCADE = recorded_answers({"a": (0.6, 0.4), "b": (0.6, 0.4), "large": (0.9, 0.8)}, {"a": 1.0, "b": 1.0, "large": 20.0})


def test_equal_answers_have_equal_classes_and_missing_ones_have_none() -> None:
    assert answer_classes(["b", None, "c", "b"]).tolist() == [0, NO_ANSWER, 2, 0]


def test_a_vote_of_three_beats_each_of_its_members() -> None:
    train, test = halves(THREE)
    weights = fit_weights(train.classes, train.scores, train.labels, train.n_categories)
    chosen = best_answer(weights.probabilities(test.classes, test.posterior), otherwise=0)
    voted = test.scores[np.arange(len(chosen)), chosen].mean()
    assert voted > test.scores.mean(axis=0).max() + 0.05


def test_answer_probabilities_are_calibrated_on_held_out_prompts() -> None:
    members = [0, 1, 2]
    found = held_out_probabilities(THREE, members, held_out_weights(THREE, members))
    chosen = best_answer(found, otherwise=0)
    believed, right = found[np.arange(len(chosen)), chosen], THREE.scores[np.arange(len(chosen)), chosen]
    assert np.ptp(believed) > 0.3
    for rows in np.array_split(np.argsort(believed), 4):
        assert believed[rows].mean() == pytest.approx(right[rows].mean(), abs=0.05)


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


def test_the_weights_of_all_folds_at_once_are_those_of_each_fold() -> None:
    """With answers that are missing, and with two right answers of one prompt."""
    random = np.random.default_rng(1)
    missing, also_right = random.random(THREE.classes.shape) < 0.2, random.random(THREE.classes.shape) < 0.1
    answers = replace(
        THREE,
        classes=np.where(missing, NO_ANSWER, THREE.classes),
        scores=np.where(missing, 0.0, np.maximum(THREE.scores, 0.5 * also_right)),
    )
    members, none = [2, 0, 1], np.empty((len(answers.labels), 0))
    found = fold_weights(answers, members)
    probabilities = fold_probabilities(answers, members, found)
    for fold in range(FOLDS):
        inside, outside = (answers.folds == fold, answers.folds != fold)
        cells = np.ix_(outside, members)
        expected = fit_weights(answers.classes[cells], answers.scores[cells], answers.labels[outside], 0)
        assert found[fold] == pytest.approx([*expected.member[:, 0], *expected.none], abs=1e-3)
        of_each = expected.probabilities(answers.classes[inside][:, members], none[inside])
        assert probabilities[inside] == pytest.approx(of_each, abs=1e-3)
    assert np.ptp(found, axis=0).max() > 1e-3


def test_a_higher_price_stops_earlier_and_a_price_of_nothing_reaches_the_quality_of_the_last_step() -> None:
    fit = RecipeFit(CASCADE, recipe="careful", steps=[[0, 1], [2]])
    costs, scores = [], []
    for price in (0.0, 0.01, 0.02, 0.1):
        _, outcome = fit.policy(price)
        costs.append(outcome.costs.mean())
        scores.append(outcome.scores.mean())
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == 2
    assert scores[0] >= CASCADE.scores[:, 2].mean() - 0.005
    assert costs[1] < 0.9 * CASCADE.costs[:, 2].mean()


def test_a_policy_earns_on_new_prompts_what_it_was_estimated_to_earn() -> None:
    train, test = halves(CASCADE)
    policy, outcome = RecipeFit(train, recipe="careful", steps=[[0, 1], [2]]).policy(0.012)
    found = replay(policy, test.classes, test.tokens, test.posterior)
    earned = test.scores[np.arange(len(found.member)), found.member]
    assert earned.mean() == pytest.approx(outcome.scores.mean(), abs=0.035)
    assert (test.costs * found.calls).sum(axis=1).mean() == pytest.approx(outcome.costs.mean(), rel=0.1)


def test_prompts_are_replayed_alone_as_they_are_together() -> None:
    policy, _ = RecipeFit(CASCADE, recipe="careful", steps=[[0, 1], [2]]).policy(0.012)
    few = CASCADE.rows(np.arange(20))
    together = replay(policy, few.classes, few.tokens, few.posterior)
    for number in range(20):
        one = few.rows(np.array([number]))
        alone = replay(policy, one.classes, one.tokens, one.posterior)
        assert alone.member[0] == together.member[number]
        assert alone.calls[0].tolist() == together.calls[number].tolist()


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
    policy, _ = RecipeFit(answers, recipe="r", steps=[[0], [1]]).policy(0.05)
    called = replay(policy, answers.classes, answers.tokens, answers.posterior).calls[:, 1]
    assert called[long].mean() > 0.9
    assert called[~long].mean() < 0.1


def test_where_no_answer_is_readable_the_latest_step_is_returned() -> None:
    unreadable = replace(CASCADE, classes=np.full_like(CASCADE.classes, NO_ANSWER))
    policy, outcome = RecipeFit(unreadable, recipe="careful", steps=[[0, 1], [2]]).policy(0.0)
    found = replay(policy, unreadable.classes, unreadable.tokens, unreadable.posterior)
    assert set(found.member) == {2}
    assert outcome.scores.mean() == CASCADE.scores[:, 2].mean()
