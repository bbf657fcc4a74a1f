"""The file beside a plan holds enough to show the plan and to solve it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from coe.cli.plan import answers
from coe.errors import ArtifactError
from coe.planning import (
    Budget,
    PlanInputs,
    Problem,
    read_plan_file,
    read_problem,
    round_traffic,
    solve,
)
from coe.planning.score_table import tabulate_softly
from tests.planning.test_plan import make, posteriors


def basis_of(problem: Problem, *, priced: bool = True) -> PlanInputs:
    """A basis whose table has other numbers than the problem, as with bounds."""
    rng = np.random.default_rng(1)
    scores = rng.uniform(size=(60, len(problem.experts)))
    scores[rng.uniform(size=scores.shape) < 0.1] = np.nan
    member = np.eye(len(problem.categories))[rng.integers(0, len(problem.categories) - 1, 60)]
    table = tabulate_softly(problem.categories, problem.experts, member, scores)
    traffic = round_traffic(posteriors(problem, count=300, seed=2, sharpness=2.0)) if priced else None
    return PlanInputs(problem, table, traffic, 1.0, "60 prompts of probes")


@pytest.mark.parametrize("priced", [False, True])
def test_solving_again_what_was_kept_gives_the_same_plan_to_the_last_digit(tmp_path: Path, priced: bool) -> None:
    problem = make(budget=Budget(mean_active_b=25, memory_gb=160))
    problem.quality[0, 1] = -np.inf
    basis = basis_of(problem, priced=priced)
    basis.save(tmp_path)
    found = read_problem(tmp_path)
    assert found is not None
    assert solve(found[0], traffic=found[1]).to_json() == solve(problem, traffic=basis.traffic).to_json()


def test_a_cell_without_scores_has_no_mean_and_an_estimate_with_its_error(tmp_path: Path) -> None:
    basis = basis_of(make())
    basis.save(tmp_path)
    kept = read_plan_file(tmp_path)
    assert kept is not None
    last = {name: kept[name][-1] for name in ("mean", "count", "estimate", "error")}
    assert last["mean"] == [None] * 4
    assert last["count"] == [0.0] * 4
    lower = np.maximum(np.array(last["estimate"]) - np.array(last["error"]), 0)
    np.testing.assert_allclose(lower, basis.table.lower(deviations=1.0)[-1])
    assert set(kept["value_of_expert"]) == {"e0", "e1", "e2", "e3"}


def test_nothing_kept_is_no_error_and_something_else_is(tmp_path: Path) -> None:
    assert read_plan_file(tmp_path) is None
    assert read_problem(tmp_path) is None
    (tmp_path / "plan.json").write_text('{"version": 2}')
    with pytest.raises(ArtifactError, match=r"version 2, not 3.*make it again with `coe plan`"):
        read_plan_file(tmp_path)
    (tmp_path / "plan.json").write_text('{"version": 3}')
    with pytest.raises(ArtifactError, match="make it again with `coe plan`"):
        read_problem(tmp_path)


def test_each_line_is_answered_by_a_plan_or_by_why_there_is_none() -> None:
    problem = make(budget=Budget(mean_active_b=25))
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
    free = solve(problem.within(mean_active_b=None))
    assert [row["expert"] for row in found[1]["plan"]["assignment"]] == list(free.choice)
    assert found[1]["plan"]["budget"] == {}
    assert found[0]["plan"]["quality"] == pytest.approx(found[1]["plan"]["quality"])
    assert "the smallest feasible limit is" in found[2]["error"]
    assert "must be above 0" in found[3]["error"]
    assert all("with keys from memory_gb" in answer["error"] for answer in found[4:])
    assert orjson.dumps(found)


def test_errors_of_differences_are_those_of_paired_prompts() -> None:
    random = np.random.default_rng(0)
    easy = random.random(500)
    scores = np.column_stack([easy, easy + random.normal(0.1, 0.02, 500), random.random(500)])
    scores[:50, 2] = np.nan
    table = tabulate_softly(("general",), ("a", "b", "c"), np.ones((500, 1)), scores)
    problem = Problem.of(table, quality=table.mean)
    plan = solve(problem)
    assert plan.choice == ("b",)
    inputs = PlanInputs(problem, table, None, 0.0, "test", prompt_scores=(np.zeros(500, dtype=np.int64), scores))
    found = np.array(inputs.paired_error(plan))[0]
    assert found[1] == 0
    assert found[0] == pytest.approx(0.02 / np.sqrt(500), rel=0.2)  # far below that of unpaired scores
    assert found[2] == pytest.approx(np.nanstd(scores[:, 2] - scores[:, 1], ddof=1) / np.sqrt(450), rel=0.01)


def test_paired_errors_of_few_or_equal_scores_are_not_zero() -> None:
    """b is equal to a on 20 prompts of one category and differs in the other, c is equal in both, and d is new."""
    names, experts = ("code", "general"), ("a", "b", "c", "d")
    labels = np.repeat([0, 1], (20, 40))
    scores = np.ones((60, 4))
    scores[20:, 1] = np.tile([0.0, 1.0], 20)
    scores[:, 3] = np.nan
    scores[18:22, 3] = 0.0
    table = tabulate_softly(names, experts, np.eye(2)[labels], scores)
    plan = replace(solve(Problem.of(table, quality=table.mean)), choice=("a", "a"))
    inputs = PlanInputs(Problem.of(table, quality=table.mean), table, None, 0.0, "test", prompt_scores=(labels, scores))
    found = np.array(inputs.paired_error(plan))
    assert found[:, 0].tolist() == [0, 0]
    assert 0.01 < found[0, 1] < found[1, 1] == pytest.approx(0.5 / np.sqrt(40), rel=0.05)
    assert np.isnan(found[:, 2:]).all()  # the unpaired error holds
