"""The scheduler of `coe tune`: the probes that it scores next, when it stops, and tables of partly scored prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coe.measuring.tune import FIRST_PROBES, Assessment, assess, first_cells, next_cells, stratified
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable, tabulate_partly, tabulate_softly
from coe.planning.uses import Uses

EXPERTS = ("a", "b", "c")


def assessed(mean: list[list[float]], count: float, left: int, **limits: Any) -> Assessment:
    values = np.array(mean)
    names = tuple(f"c{row}" for row in range(len(values)))
    spread = values * (1 - values)
    table = ScoreTable(names, EXPERTS[: values.shape[1]], values, spread, np.full(values.shape, float(count)))
    posterior = table.posterior()
    problem = Problem.of(table, quality=posterior.mean, **limits)
    return assess(problem, posterior, np.full(values.shape, left))


def test_a_plan_of_few_scores_may_lose_and_one_of_many_does_not() -> None:
    close = [[0.6, 0.5, 0.3], [0.4, 0.5, 0.3]]
    few, many = assessed(close, 3, 37), assessed(close, 4000, 0)
    assert few.loss > few.gain > 0.03
    assert many.loss < 1e-3
    assert many.choice.tolist() == [0, 1]


def test_nothing_is_gained_where_no_probe_is_left() -> None:
    found = assessed([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]], 10, left=0)
    assert found.loss > 0.03  # who is the best is unknown, and stays so
    assert found.gain == pytest.approx(0.0, abs=1e-9)
    assert (found.value == 0).all()


def test_probes_go_to_the_open_category_and_leave_out_the_hopeless_expert() -> None:
    value = assessed([[0.9, 0.1, 0.1], [0.5, 0.5, 0.05], [0.1, 0.1, 0.9]], 12, 28).value
    assert set(np.argsort(-value, axis=None)[:2].tolist()) == {3, 4}
    assert value[1, 2] < 0.1 * value[1, 0]


def test_of_equal_gains_the_cheaper_one_is_asked_first() -> None:
    member, open_cells = np.repeat(np.eye(2), 5, axis=0), np.ones((10, 2), dtype=bool)
    open_cells[5:7, 1] = False
    found = Assessment(np.array([0, 0]), 0.1, 0.1, np.array([[0.01, 0.0], [0.01, 0.02]]), np.array([[3, 1], [3, 3]]))
    assert next_cells(found, np.array([1.0, 1.0]), member, open_cells) == sorted(
        [(row, 0) for row in (0, 1, 2, 5, 6, 7)] + [(row, 1) for row in (7, 8, 9)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coe.measuring.tune.ROUND_CELLS", 1)
        dear = next_cells(found, np.array([1.0, 3.0]), member, open_cells)
    assert dear == [(row, 0) for row in range(3)]


def test_a_budget_that_leaves_no_choice_settles_the_plan() -> None:
    mean, uses = [[0.5, 0.6], [0.6, 0.5]], Uses(cost=np.tile([1.0, 9.0], (2, 1)))
    assert assessed(mean, 3, 37, uses=uses).loss > 0.03
    limited = assessed(mean, 3, 37, uses=uses, budget={"mean_cost": 1.0})
    assert limited.choice.tolist() == [0, 0]
    assert limited.loss == 0.0


def test_the_first_cells_are_a_few_of_every_category_in_turn() -> None:
    member = np.repeat(np.eye(2), 5, axis=0)
    open_cells = np.ones((10, 2), dtype=bool)
    open_cells[0, 0] = False  # scored before
    cells = first_cells(member, open_cells)
    assert len(cells) == 2 * FIRST_PROBES * 2 - 1
    assert cells[:3] == [(0, 1), (5, 0), (5, 1)]


def test_every_part_of_the_order_has_the_difficulties_in_proportion() -> None:
    names = ["easy"] * 14 + ["medium"] * 13 + ["hard"] * 13
    order = stratified(names)
    assert sorted(order) == list(range(40))
    for size in (3, 6, 9, 30):
        counts = [sum(names[row] == name for row in order[:size]) for name in ("easy", "medium", "hard")]
        assert max(counts) - min(counts) <= 1


def test_an_expert_gains_nothing_from_easier_prompts() -> None:
    scores = np.tile([[1.0, 1.0], [0.0, 0.0]], (40, 1))
    scores[21::2, 1] = np.nan  # the second expert got most of the hard ones not
    member = np.ones((80, 1))
    plain, partly = (of(("c",), ("a", "b"), member, scores) for of in (tabulate_softly, tabulate_partly))
    assert plain.mean[0, 1] - plain.mean[0, 0] > 0.25
    assert abs(partly.mean[0, 1] - partly.mean[0, 0]) < 0.15
    assert partly.count.tolist() == [[80, 50]]
