"""The scheduler of `coe tune`: the probes that it scores next, when it stops, and tables of partly scored prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coe.measuring.tune import (
    BLOCK_PROBES,
    Assessment,
    Block,
    Goal,
    assess,
    cells_of,
    first_cells,
    next_blocks,
    stratified,
    without_prompts,
)
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable, fit_pseudo_count, tabulate_partly, tabulate_softly
from coe.planning.uses import Uses

EXPERTS = ("a", "b", "c")
GOAL = Goal()


def table_of(mean: list[list[float]], count: float) -> ScoreTable:
    values = np.array(mean)
    names = tuple(f"c{row}" for row in range(len(values)))
    return ScoreTable(
        names, EXPERTS[: values.shape[1]], values, values * (1 - values), np.full(values.shape, float(count))
    )


def assessed(table: ScoreTable, left: int, **limits: Any) -> Assessment:
    problem = Problem.of(table, quality=table.lower(deviations=1.0), **limits)
    remaining = np.full(table.mean.shape, left)
    return assess(problem, table, remaining, GOAL, pseudo_count=6.0)


def test_a_plan_of_few_scores_is_open_and_one_of_many_is_settled() -> None:
    close = [[0.6, 0.5, 0.3], [0.4, 0.5, 0.3]]
    few, many = assessed(table_of(close, 3), 37), assessed(table_of(close, 4000), 0)
    assert not few.reaches(GOAL)
    assert many.certainty > 0.99
    assert many.choice.tolist() == [0, 1]


def test_nothing_is_asked_where_no_probe_can_change_the_plan() -> None:
    level = [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    found = assessed(table_of(level, 10), left=0)
    assert found.certainty < GOAL.confidence  # who is the best is unknown, and stays so
    assert found.reaches(GOAL)


def test_probes_go_to_the_open_category_and_leave_out_the_hopeless_expert() -> None:
    table = table_of([[0.9, 0.1, 0.1], [0.5, 0.5, 0.05], [0.1, 0.1, 0.9]], 12)
    found, left = assessed(table, left=28), np.full((3, 3), 28)
    blocks = next_blocks(found, np.ones((3, 3)), left)
    assert blocks[0] == Block(1, (0, 1))


def test_of_equal_gains_the_cheaper_one_is_asked_first() -> None:
    table = table_of([[0.5, 0.5], [0.5, 0.5]], 12)
    found = Assessment(np.array([0, 0]), 0.5, np.array([0.02, 0.02]), np.full((2, 2), 0.5))
    cost = np.array([[1.0, 3.0], [1.0, 1.0]])
    blocks = next_blocks(found, cost, np.full(table.mean.shape, 9))
    assert [block.category for block in blocks] == [1, 0]


def test_a_budget_that_leaves_no_choice_settles_the_plan() -> None:
    table = table_of([[0.5, 0.6], [0.6, 0.5]], 3)
    uses = Uses(cost=np.tile([1.0, 9.0], (2, 1)))
    assert assessed(table, 37, uses=uses).certainty < GOAL.confidence
    limited = assessed(table, 37, uses=uses, budget={"mean_cost": 1.0})
    assert limited.choice.tolist() == [0, 0]
    assert limited.certainty == 1.0


def test_the_first_cells_are_a_few_of_every_category_in_turn() -> None:
    member = np.repeat(np.eye(2), 5, axis=0)
    open_cells = np.ones((10, 2), dtype=bool)
    open_cells[0, 0] = False  # scored before
    cells = first_cells(member, open_cells)
    assert len(cells) == 2 * BLOCK_PROBES * 2 - 1
    assert cells[:3] == [(0, 1), (5, 0), (5, 1)]


def test_the_experts_of_a_block_answer_the_same_probes() -> None:
    member, open_cells = np.repeat(np.eye(2), 5, axis=0), np.ones((10, 3), dtype=bool)
    open_cells[5:7, 0] = False
    cells = cells_of(Block(1, (0, 2)), member, open_cells)
    assert cells == [(5, 2), (6, 2), (7, 0), (7, 2)]


def test_every_part_of_the_order_has_the_difficulties_in_proportion() -> None:
    names = ["easy"] * 14 + ["medium"] * 13 + ["hard"] * 13
    order = stratified(names)
    assert sorted(order) == list(range(40))
    for size in (3, 6, 9, 30):
        counts = [sum(names[row] == name for row in order[:size]) for name in ("easy", "medium", "hard")]
        assert max(counts) - min(counts) <= 1


def test_an_expert_gains_nothing_from_easier_prompts() -> None:
    easy, hard = np.tile([0.9, 0.9], (20, 1)), np.tile([0.3, 0.3], (20, 1))
    scores = np.vstack((easy, hard))
    scores[20:, 1] = np.nan  # the second expert got the easy ones alone
    member = np.ones((40, 1))
    plain, partly = (of(("c",), ("a", "b"), member, scores) for of in (tabulate_softly, tabulate_partly))
    assert plain.mean[0, 1] - plain.mean[0, 0] == pytest.approx(0.3)
    assert abs(partly.mean[0, 1] - partly.mean[0, 0]) < 0.11
    assert partly.count.tolist() == [[40, 20]]


def test_the_strength_of_shrinkage_is_fitted_to_partial_scores() -> None:
    rng = np.random.default_rng(0)
    labels = [f"c{row % 6}" for row in range(600)]
    skill = rng.normal(size=(6, 4))
    scores = skill[[row % 6 for row in range(600)]] + rng.normal(size=(600, 4)) + rng.normal(size=(600, 1))
    whole = fit_pseudo_count(labels, scores)
    scores[rng.random(scores.shape) < 0.4] = np.nan
    assert fit_pseudo_count(labels, scores) == pytest.approx(whole, rel=0.35)


def test_what_all_experts_share_adds_no_uncertainty() -> None:
    hard = np.tile([[0.0, 0.0], [1.0, 1.0]], (10, 1))
    member = np.ones((20, 1))
    table = tabulate_partly(("c",), ("a", "b"), member, hard)
    assert (table.variance > 0.2).all()
    assert (without_prompts(table, member, hard).variance < 1e-12).all()
