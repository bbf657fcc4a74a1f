"""Score tables: sums by cell, shrinkage, bounds, and cells that nobody measured."""

from __future__ import annotations

import numpy as np
import pytest

from coe.planning.score_table import ScoreTable, fit_pseudo_count, tabulate_softly


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


def test_lower_bounds_lie_below_and_come_closer_with_more_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 2, size=(1100, 2)).astype(float)
    posterior = np.eye(2)[[0] * 1000 + [1] * 100]
    table = tabulate_softly(("x", "y"), ("a", "b"), posterior, scores)
    gap = table.shrunk() - table.lower(deviations=1.0)
    assert (gap > 0).all()
    assert (gap[0] < gap[1]).all()
    assert (table.lower(deviations=100.0) == 0).all()


def test_the_data_ask_for_strong_shrinkage_only_where_categories_say_nothing() -> None:
    rng = np.random.default_rng(1)
    categories = [f"c{i % 5}" for i in range(2000)]
    noise = rng.uniform(size=(2000, 4))
    skill = np.array([[float(i % 5 == k) for k in range(4)] for i in range(2000)])
    assert fit_pseudo_count(categories, noise) > 100
    assert fit_pseudo_count(categories, noise + skill) < 2


def test_shrinkage_is_not_misled_by_how_hard_the_prompts_of_a_category_are() -> None:
    rng = np.random.default_rng(2)
    categories = [f"c{i % 5}" for i in range(2000)]
    noise = rng.uniform(size=(2000, 4))
    hard = np.array([i % 5 for i in range(2000)])[:, None]
    assert fit_pseudo_count(categories, noise + hard) == pytest.approx(fit_pseudo_count(categories, noise))
