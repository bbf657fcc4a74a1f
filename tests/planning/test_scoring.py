"""Score tables: sums by cell, shrinkage, bounds, and cells that nobody measured."""

from __future__ import annotations

import numpy as np
import pytest

from coe.planning.job.basis import credited
from coe.planning.score_table import ScoreTable, tabulate_softly


def tabulate(categories: list[str], models: list[str], scores: list[float]) -> ScoreTable:
    """The table of long data: each row is the score of one model on a prompt of its own."""
    experts = sorted(set(models))
    rows = np.full((len(scores), len(experts)), np.nan)
    rows[np.arange(len(scores)), [experts.index(model) for model in models]] = scores
    names = sorted(set(categories))
    return tabulate_softly(names, experts, np.array(categories)[:, None] == np.array(names), rows)


def test_long_scores_add_up_by_category_and_model() -> None:
    table = tabulate(["law", "code", "code", "code"], ["a", "a", "a", "b"], [1.0, 0.0, 1.0, 0.25])
    assert table.categories == ("code", "law")
    assert table.experts == ("a", "b")
    np.testing.assert_allclose(table.mean, [[0.5, 0.25], [1.0, np.nan]])
    np.testing.assert_allclose(table.count, [[2, 1], [1, 0]])
    np.testing.assert_allclose(table.variance, [[0.25, 0.0], [0.0, np.nan]])


def test_a_missing_cell_is_named_and_estimated_from_its_category_and_its_expert() -> None:
    table = tabulate(["easy", "easy", "hard"], ["good", "poor", "good"], [0.9, 0.5, 0.6])
    assert np.argwhere(table.count == 0).tolist() == [[1, 1]]
    assert table.shrunk()[1, 1] == pytest.approx(0.2, abs=0.02)  # 0.4 below the good one, as on the easy prompts


def test_shrinkage_vanishes_with_many_scores_and_rules_with_few() -> None:
    many, few = 1000, 1
    names = ["x"] * (2 * many) + ["y"] * (2 * few)
    models = (["a"] * many + ["b"] * many) + (["a"] * few + ["b"] * few)
    table = tabulate(names, models, [0.8] * many + [0.4] * many + [0.0] * few + [1.0] * few)
    shrunk = table.shrunk(pseudo_count=10)
    np.testing.assert_allclose(shrunk[0], [0.8, 0.4], atol=0.01)
    assert shrunk[1, 0] > shrunk[1, 1]  # two lucky scores do not overturn a thousand


def table_of(right: list[list[int]], count: int) -> ScoreTable:
    mean = np.array(right) / count
    names = tuple(f"c{row}" for row in range(len(mean)))
    return ScoreTable(names, tuple("abcdef")[: mean.shape[1]], mean, mean * (1 - mean), np.full(mean.shape, count))


def test_a_specialist_keeps_a_chance_after_a_few_scores_and_is_believed_after_many() -> None:
    rng = np.random.default_rng(0)
    for count, least in ((3, 0.6), (40, 0.85)):
        right = rng.binomial(count, np.tile([0.85, 0.7, 0.5], (12, 1)))
        right[0, 2] = count
        posterior = table_of(right.tolist(), count).posterior()
        assert least < posterior.mean[0, 2] < 1.0
        assert (posterior.mean[1:, 2] < 0.75).all()
    assert posterior.mean[0].argmax() == 2


def test_errors_cover_the_truth_and_fall_with_more_scores() -> None:
    rng = np.random.default_rng(1)
    misses, errors = [], []
    for count in (4, 40):
        truth = np.clip(np.array([0.8, 0.7, 0.6, 0.5]) + 0.12 * rng.standard_normal((40, 4)), 0.02, 0.98)
        posterior = table_of(rng.binomial(count, truth).tolist(), count).posterior()
        misses.append((np.abs(posterior.mean - truth) > 2 * np.sqrt(posterior.variance)).mean())
        errors.append(np.sqrt(posterior.variance.min()))
        drawn = posterior.draw(400)
        np.testing.assert_allclose(drawn.mean(axis=0), posterior.mean, atol=0.05)
        np.testing.assert_allclose(drawn.std(axis=0), np.sqrt(posterior.variance), atol=0.05)
    assert max(misses) < 0.12
    assert errors[0] > errors[1] > 0.01


def test_of_level_experts_the_cheapest_serves() -> None:
    quality = np.array([[0.804, 0.80, 0.5], [0.9, 0.8, 0.79]])
    cost = np.tile([7.0, 1.0, 0.5], (2, 1))
    assert credited(quality, np.full((2, 3), 0.002), cost).argmax(axis=1).tolist() == [1, 0]
    assert credited(quality, np.full((2, 3), 1e-9), cost).argmax(axis=1).tolist() == [0, 0]


def test_partial_scores_say_more_than_right_and_wrong_ones() -> None:
    mean, count = np.array([[0.6, 0.5], [0.6, 0.5]]), np.full((2, 2), 20.0)
    graded, judged = (
        ScoreTable(("x", "y"), ("a", "b"), mean, factor * mean * (1 - mean), count).posterior().variance
        for factor in (0.2, 1.0)
    )
    assert (graded < 0.5 * judged).all()


def test_a_score_informs_about_the_other_categories_of_its_expert() -> None:
    few = table_of([[3, 2, 1]] * 6, 4).posterior()
    own = np.diagonal(few.covariance, axis1=1, axis2=2)
    assert ((few.covariance[:, 0, 1] > 0) & (few.covariance[:, 0, 1] < own[:, 0])).all()


def test_the_data_ask_for_strong_shrinkage_only_where_categories_say_nothing() -> None:
    rng = np.random.default_rng(1)
    strength = [
        table_of(rng.binomial(300, truth).tolist(), 300).posterior().strength
        for truth in (np.tile([0.8, 0.6, 0.5], (8, 1)), rng.uniform(0.2, 0.9, (8, 3)))
    ]
    assert strength[0] > 2 * strength[1]
