"""A stored plan holds enough to route by it, to show it and to solve it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.cli.plan import answers
from coe.errors import ArtifactError
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
    return Plan(
        assignment,
        problem,
        table,
        "60 prompts",
        problem.quality,
        problem.quality,
        value_of_expert=values,
        measured=table,
        traffic=traffic,
    )


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
