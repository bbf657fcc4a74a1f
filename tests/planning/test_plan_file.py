"""A stored plan holds enough to route by it, to show it and to solve it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.cli.plan import answers
from coe.errors import ArtifactError
from coe.planning.job.basis import paired_error
from coe.planning.plan import Plan, round_traffic
from coe.planning.problem import Problem
from coe.planning.score_table import ScoreTable, tabulate_softly
from coe.planning.solver import marginal_values, solve
from tests.planning.test_plan import make, posteriors, with_arms


def plan_for(problem: Problem, *, priced: bool = True) -> Plan:
    """A plan whose table has other numbers than the problem, as with bounds; the last category has no scores."""
    rng = np.random.default_rng(1)
    scores = rng.uniform(size=(60, len(problem.experts)))
    scores[rng.uniform(size=scores.shape) < 0.1] = np.nan
    member = np.eye(len(problem.categories))[rng.integers(0, len(problem.categories) - 1, 60)]
    table = tabulate_softly(problem.categories, problem.experts, member, scores)
    traffic = round_traffic(posteriors(problem, count=300, seed=2, sharpness=2.0)) if priced else None
    assignment = solve(problem, traffic=traffic)
    values = marginal_values(problem, assignment)
    return Plan(assignment, problem, table, "60 prompts", 1.0, value_of_expert=values, measured=table, traffic=traffic)


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("source", [make, with_arms])
def test_a_plan_comes_back_and_is_solved_again_to_the_last_digit(source: type, tmp_path: Path, priced: bool) -> None:
    problem = source(mean_cost=2.5, memory_gb=160)
    problem.quality[0, 1] = -np.inf
    plan = plan_for(problem, priced=priced)
    plan.save(tmp_path)
    found = Plan.read(tmp_path)
    assert found.assignment.digest == plan.assignment.digest == solve(found.problem, traffic=found.traffic).digest
    assert np.isneginf(found.assignment.quality[0, 1])
    assert (found.problem.members, found.value_of_expert) == (problem.members, plan.value_of_expert)
    for one in (found.table, found.measured):
        assert isinstance(one, ScoreTable)
        np.testing.assert_array_equal(one.mean, plan.table.mean)
        assert np.isnan(one.mean[-1]).all()


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 0}', '{"format": 1}'])
def test_a_damaged_plan_names_the_remedy(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ArtifactError, match="make it again with `coe plan`"):
        Plan.read(tmp_path)


def test_each_line_is_answered_by_a_plan_or_by_why_there_is_none() -> None:
    problem = make(mean_active_b=25)
    lines = [
        '{"mean_active_b": 60}',
        "{}",
        '{"mean_active_b": 0.1}',
        '{"mean_active_b": -1}',
        '{"speed": 1}',
        "[",
        "{}x",
    ]
    found = list(answers(lines, problem, None))
    free = solve(replace(problem, budget={}))
    assert [row["expert"] for row in found[1]["plan"]["assignment"]] == list(free.choice)
    assert found[1]["plan"]["budget"] == {}
    assert found[0]["plan"]["quality"] == pytest.approx(found[1]["plan"]["quality"])
    assert "the smallest feasible limit is" in found[2]["error"]
    assert "must be above 0" in found[3]["error"]
    assert all("with keys from memory_gb" in answer["error"] for answer in found[4:])


def errors_of(labels: np.ndarray, scores: np.ndarray, choice: tuple[str, ...]) -> np.ndarray:
    names, experts = tuple(f"c{row}" for row in range(len(choice))), tuple("abcd"[: scores.shape[1]])
    table = tabulate_softly(names, experts, np.eye(len(names))[labels], scores)
    problem = Problem.of(table, quality=np.nan_to_num(table.mean))
    return paired_error(Plan(replace(solve(problem), choice=choice), problem, table, ""), labels, scores)


def test_errors_of_differences_are_those_of_paired_prompts() -> None:
    random = np.random.default_rng(0)
    easy = random.random(500)
    scores = np.column_stack([easy, easy + random.normal(0.1, 0.02, 500), random.random(500)])
    scores[:50, 2] = np.nan
    (found,) = errors_of(np.zeros(500, dtype=np.int64), scores, ("b",))
    assert found[1] == 0
    assert found[0] == pytest.approx(0.02 / np.sqrt(500), rel=0.2)  # far below that of unpaired scores
    assert found[2] == pytest.approx(np.nanstd(scores[:, 2] - scores[:, 1], ddof=1) / np.sqrt(450), rel=0.01)


def test_paired_errors_of_few_or_equal_scores_are_not_zero() -> None:
    """b is equal to a on 20 prompts of one category and differs in the other, c is equal in both, and d is new."""
    scores = np.ones((60, 4))
    scores[20:, 1] = np.tile([0.0, 1.0], 20)
    scores[:, 3] = np.nan
    scores[18:22, 3] = 0.0
    found = errors_of(np.repeat([0, 1], (20, 40)), scores, ("a", "a"))
    assert found[:, 0].tolist() == [0, 0]
    assert 0.01 < found[0, 1] < found[1, 1] == pytest.approx(0.5 / np.sqrt(40), rel=0.05)
    assert np.isnan(found[:, 2:]).all()  # the unpaired error holds
