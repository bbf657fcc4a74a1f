"""The plan: exact against brute force, budgets that bind, budgets that cannot be kept, prices that keep them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from coe.errors import CoEError, ConfigError, DataError
from coe.planning import (
    Budget,
    Problem,
    Uses,
    expected_utility,
    marginal_values,
    planned_quality,
    planned_use,
    program,
    routed_use,
    solve,
    sweep,
)


def make(*, categories: int = 5, experts: int = 4, seed: int = 0, budget: Budget | None = None) -> Problem:
    """A random problem in which larger experts tend to be better."""
    rng = np.random.default_rng(seed)
    size = np.sort(rng.uniform(1, 70, experts))
    quality = np.clip(0.3 + 0.1 * np.log(size) + rng.normal(0, 0.1, (categories, experts)), 0, 1)
    factors = {"active_b": 1.0, "cost": 0.1, "latency_ms": 5.0}
    uses = {name: np.tile(factor * size, (categories, 1)) for name, factor in factors.items()}
    return Problem(
        categories=tuple(f"c{i}" for i in range(categories)),
        experts=tuple(f"e{i}" for i in range(experts)),
        quality=quality,
        weights=rng.dirichlet(np.ones(categories)),
        uses=Uses(memory_gb=2 * size, **uses),
        budget=budget or Budget(),
    )


def brute_force(problem: Problem) -> float:
    """Highest weighted quality of all assignments within the budget."""
    limits = problem.budget.rows()
    best = -np.inf
    for choice in itertools.product(range(len(problem.experts)), repeat=len(problem.categories)):
        rows, columns = np.arange(len(choice)), np.array(choice)
        used = {
            "memory_gb": problem.use("memory_gb")[np.unique(columns)].sum(),
            "max_share": np.bincount(columns, weights=problem.weights).max(),
            **{row: problem.weights @ problem.use(row)[rows, columns] for row in ("mean_active_b", "mean_cost")},
        }
        if all(used[row] <= limit + 1e-9 for row, limit in limits.items()):
            best = max(best, float(problem.weights @ problem.quality[np.arange(len(columns)), columns]))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "budget",
    [
        Budget(),
        Budget(memory_gb=110),
        Budget(mean_active_b=25),
        Budget(max_share=0.6),
        Budget(memory_gb=160, mean_active_b=30, mean_cost=3, max_share=0.9),
    ],
)
def test_the_plan_is_as_good_as_the_best_of_all_assignments(seed: int, budget: Budget) -> None:
    problem = make(seed=seed, budget=budget)
    best = brute_force(problem)
    if best == -np.inf:
        with pytest.raises(ConfigError):
            solve(problem)
        return
    plan = solve(problem)
    assert planned_quality(problem, plan) == pytest.approx(best, abs=2e-4)
    used = planned_use(problem, plan)
    assert all(used[row] <= limit + 1e-6 for row, limit in budget.rows().items())


def test_an_impossible_budget_names_the_row_and_a_limit_that_does() -> None:
    problem = make(budget=Budget(mean_active_b=0.5, max_share=0.9))
    with pytest.raises(
        ConfigError, match=r"mean_active_b 0\.5 cannot be kept; the smallest feasible limit is"
    ) as caught:
        solve(problem)
    limit = float(caught.value.problems[0].split()[-1])
    solve(problem.within(mean_active_b=limit))
    with pytest.raises(ConfigError):
        solve(problem.within(mean_active_b=limit * 0.99))


def test_an_impossible_memory_or_share_names_itself_too() -> None:
    smallest = float(make().use("memory_gb").min())
    with pytest.raises(ConfigError, match=r"memory_gb .* smallest feasible limit is") as caught:
        solve(make(budget=Budget(memory_gb=0.5 * smallest)))
    assert float(caught.value.problems[0].split()[-1]) == pytest.approx(smallest, rel=2e-3)
    with pytest.raises(ConfigError, match=r"max_share 0\.01 cannot be kept"):
        solve(make(budget=Budget(max_share=0.01)))


def test_rows_that_are_impossible_together_are_all_named() -> None:
    problem = make(budget=Budget(mean_active_b=0.5, memory_gb=0.5))
    with pytest.raises(ConfigError, match=r"no single row is to blame.*memory_gb .*mean_active_b "):
        solve(problem)


def test_a_budget_over_a_use_that_is_not_known_names_the_experts() -> None:
    problem = make()
    uses = replace(problem.uses, active_b=np.tile([1.0, np.nan, 3.0, 4.0], (5, 1)))
    with pytest.raises(DataError, match=r"mean_active_b needs active_b .* e1;"):
        replace(problem, uses=uses, budget=Budget(mean_active_b=5))
    with pytest.raises(DataError, match="e0, e1, e2, e3"):
        replace(problem, uses=Uses(), budget=Budget(memory_gb=5))


def test_a_limit_that_is_not_above_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="mean_cost is -1"):
        Budget(mean_cost=-1)


def test_a_category_that_no_expert_may_serve_is_refused() -> None:
    with pytest.raises(DataError, match="no expert may serve c1"):
        Problem(("c0", "c1"), ("e",), np.array([[1.0], [-np.inf]]), np.array([0.5, 0.5]))


def test_an_expert_that_may_not_serve_a_category_does_not_get_it() -> None:
    problem = make()
    quality = problem.quality.copy()
    quality[2, :] = [0.1, -np.inf, -np.inf, -np.inf]
    assert solve(replace(problem, quality=quality)).choice[2] == "e0"


def test_runner_up_and_margin_are_those_of_the_hosted_experts() -> None:
    quality = np.array([[0.9, 0.7, 0.8]])
    problem = Problem(("c",), ("a", "b", "huge"), quality, np.ones(1), Uses(memory_gb=np.array([1.0, 1.0, 9.0])))
    free, tight = solve(problem), solve(problem.within(memory_gb=1))
    assert (free.runner_up, free.margin) == (("huge",), (pytest.approx(0.1),))
    assert tight.hosted == ("a",)
    assert (tight.runner_up, tight.margin) == ((None,), (pytest.approx(0.9),))


def test_leaving_an_expert_out_costs_what_the_next_best_loses() -> None:
    quality = np.array([[0.9, 0.7, 0.1], [0.2, 0.6, 0.1]])
    problem = Problem(("x", "y"), ("a", "b", "c"), quality, np.array([0.5, 0.5]))
    assert marginal_values(problem) == {"a": pytest.approx(0.1), "b": pytest.approx(0.2), "c": 0.0}


def test_an_expert_that_nothing_works_without_has_no_value() -> None:
    problem = Problem(("x",), ("a",), np.array([[0.9]]), np.ones(1))
    assert marginal_values(problem) == {"a": None}


def test_what_an_expert_is_worth_is_left_out_rather_than_guessed_where_there_is_no_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = Problem(("x", "y"), ("a", "b", "c"), np.array([[0.9, 0.7, 0.1], [0.2, 0.6, 0.1]]), np.array([0.5, 0.5]))
    monkeypatch.setattr("coe.planning.plan.MARGINAL_VALUES_SECONDS", 0.0)
    assert marginal_values(problem) == {"c": 0.0}


def test_a_plan_that_is_far_from_the_optimum_when_the_time_is_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MAX_SOLVER_SECONDS", 0.01)
    with pytest.raises(CoEError, match="found no good plan in"):
        solve(make(categories=60, experts=30, budget=Budget(memory_gb=100, mean_cost=1)))


def test_a_sweep_never_gets_worse_with_a_larger_budget_and_leaves_out_what_cannot_be() -> None:
    problem = make(categories=8, experts=6)
    rows = sweep(problem, "mean_active_b", [0.1, 60, 10, 20, 40])
    assert [row.limit for row in rows] == sorted(row.limit for row in rows)
    assert rows[0].limit > 0.1
    qualities = [row.quality for row in rows]
    assert all(later >= earlier - 2e-4 for earlier, later in itertools.pairwise(qualities))
    assert rows[0].efficient
    assert all(row.used["mean_active_b"] <= row.limit + 1e-6 for row in rows)


def test_nothing_is_charged_where_no_budget_binds() -> None:
    plan = solve(make(budget=Budget(mean_active_b=1000, max_share=1.0)))
    np.testing.assert_allclose(plan.price, 0.0, atol=1e-9)


def posteriors(problem: Problem, *, count: int, seed: int, sharpness: float) -> np.ndarray:
    """Draw posteriors of `count` requests: mixtures around categories drawn by weight."""
    rng = np.random.default_rng(seed)
    true = rng.choice(len(problem.categories), size=count, p=problem.weights)
    logits = rng.normal(size=(count, len(problem.categories)))
    logits[np.arange(count), true] += sharpness
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize(
    "budget",
    [
        Budget(mean_active_b=20),
        Budget(mean_cost=1.5),
        Budget(max_share=0.3),
        Budget(memory_gb=150, mean_active_b=20, mean_latency_ms=90, max_share=0.6),
    ],
)
def test_requests_routed_at_the_plan_s_prices_keep_its_budgets(budget: Budget, sharpness: float) -> None:
    problem = make(categories=12, experts=6, seed=3, budget=budget)
    plan = solve(problem, traffic=posteriors(problem, count=4000, seed=1, sharpness=sharpness))
    routed = np.array(
        [expected_utility(plan, p).argmax() for p in posteriors(problem, count=4000, seed=2, sharpness=sharpness)]
    )
    assert {problem.experts[column] for column in routed} <= set(plan.hosted)
    limits = budget.rows()
    for row in ("mean_active_b", "mean_cost", "mean_latency_ms"):
        if row in limits:
            assert problem.use(row)[0, routed].mean() <= 1.05 * limits[row]
    if "max_share" in limits:
        assert np.bincount(routed).max() / len(routed) <= 1.05 * limits["max_share"]
    if budget.memory_gb:
        assert planned_use(problem, plan)["memory_gb"] <= budget.memory_gb


def test_a_crowd_that_could_go_either_way_does_not_break_the_budget() -> None:
    quality = np.array([[0.9, 0.5], [0.8, 0.5]])
    uses = Uses(active_b=np.tile([70.0, 8.0], (2, 1)))
    problem = Problem(("x", "y"), ("large", "small"), quality, np.array([0.6, 0.4]), uses, Budget(mean_active_b=20))
    traffic = np.eye(2)[[0] * 600 + [1] * 400]
    plan = solve(problem, traffic=traffic)
    routed = np.array([expected_utility(plan, p).argmax() for p in traffic])
    assert uses.active_b is not None
    assert uses.active_b[0, routed].mean() <= 20


def test_a_crowd_that_no_price_parts_leaves_the_prices_as_they_are() -> None:
    quality = np.array([[0.9, 0.5], [0.2, 0.8]])
    problem = Problem(("x", "y"), ("a", "b"), quality, np.array([0.5, 0.5]), Uses(), Budget(max_share=0.5))
    plan = solve(problem, traffic=np.eye(2)[[0] * 60 + [1] * 40])
    assert np.abs(plan.price).max() <= 1
    assert routed_use(problem, plan, np.eye(2)[[0] * 60 + [1] * 40]) == {"max_share": 0.6}


def test_prices_spend_a_binding_budget_instead_of_hoarding_it() -> None:
    problem = make(categories=12, experts=6, seed=3, budget=Budget(mean_active_b=20))
    traffic = posteriors(problem, count=4000, seed=1, sharpness=1.0)
    plan = solve(problem, traffic=traffic)
    routed = np.array([expected_utility(plan, p).argmax() for p in traffic])
    used = problem.use("mean_active_b")[0, routed].mean()
    assert used == pytest.approx(20, rel=0.02)
    assert routed_use(problem, plan, traffic) == {"mean_active_b": pytest.approx(used)}


@pytest.mark.slow
def test_sixty_experts_and_a_hundred_categories_are_planned_within_budget() -> None:
    problem = make(categories=100, experts=60, budget=Budget(memory_gb=400))
    plan = solve(problem)
    assert planned_use(problem, plan)["memory_gb"] <= 400
    single = [problem.weights @ problem.quality[:, k] for k in np.flatnonzero(problem.use("memory_gb") <= 400)]
    assert planned_quality(problem, plan) > max(single)
