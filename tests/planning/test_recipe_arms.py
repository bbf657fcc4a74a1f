"""Arms of recipes as columns of a problem: their members are hosted, count once in memory, and are called."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.errors import ConfigError, DataError
from coe.planning import (
    Budget,
    PlanInputs,
    Problem,
    Uses,
    expected_price,
    expected_utility,
    marginal_values,
    planned_quality,
    planned_use,
    read_problem,
    routed_use,
    smallest_limit,
    solve,
)
from coe.planning.score_table import tabulate_softly
from tests.planning.test_plan import posteriors

ARMS = {"r1": ("a", "b"), "r2": ("b", "c", "d")}


def make(*, categories: int = 4, seed: int = 0, budget: Budget | None = None) -> Problem:
    """Four experts and two arms, each better than its members; uses differ by category."""
    random = np.random.default_rng(seed)
    size = np.array([2.0, 5.0, 20.0, 60.0])
    quality = np.clip(0.3 + 0.1 * np.log(size) + random.normal(0, 0.1, (categories, 4)), 0, 0.9)
    cost = size * np.exp(random.normal(0, 0.5, (categories, 4)))
    for members in ((0, 1), (1, 2, 3)):
        best = quality[:, members].max(axis=1) + random.uniform(0, 0.1, categories)
        quality, cost = np.column_stack((quality, best)), np.column_stack((cost, 0.7 * cost[:, members].sum(axis=1)))
    calls = {"r2": np.column_stack((np.ones((categories, 1)), random.uniform(0.2, 0.8, (categories, 2))))}
    return Problem(
        tuple(f"c{row}" for row in range(categories)),
        ("a", "b", "c", "d", "r1", "r2"),
        quality,
        random.dirichlet(np.ones(categories)),
        Uses(np.array([2 * size[0], *(2 * size[1:]), 0.0, 0.0]), cost=cost, latency_ms=10 * cost, calls=calls),
        budget or Budget(),
        ARMS,
    )


def needed(problem: Problem, columns: tuple[int, ...]) -> set[str]:
    names = [problem.experts[column] for column in columns]
    return {member for name in names for member in ARMS.get(name, (name,))}


def brute_force(problem: Problem) -> float:
    """Highest weighted quality of all assignments within the budget."""
    rows, best = np.arange(len(problem.categories)), -np.inf
    memory = dict(zip(problem.experts, problem.use("memory_gb"), strict=True))
    for choice in itertools.product(range(len(problem.experts)), repeat=len(problem.categories)):
        calls = dict.fromkeys("abcd", 0.0)
        for row, column in enumerate(choice):
            name = problem.experts[column]
            share = problem.uses.calls.get(name, np.ones((len(rows), len(ARMS.get(name, (name,))))))
            for one, member in enumerate(ARMS.get(name, (name,))):
                calls[member] += problem.weights[row] * share[row, one]
        used = {
            "memory_gb": sum(memory[name] for name in needed(problem, choice)),
            "mean_cost": problem.weights @ problem.use("mean_cost")[rows, list(choice)],
            "max_share": max(calls.values()),
        }
        if all(used[row] <= limit + 1e-9 for row, limit in problem.budget.rows().items()):
            best = max(best, float(problem.weights @ problem.quality[rows, list(choice)]))
    return best


BUDGETS = [
    Budget(),
    Budget(memory_gb=15),
    Budget(memory_gb=60),
    Budget(mean_cost=8),
    Budget(max_share=0.6),
    Budget(memory_gb=60, mean_cost=12, max_share=0.9),
    Budget(memory_gb=174, max_share=0.7),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", BUDGETS)
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
    chosen = tuple(problem.experts.index(name) for name in plan.choice)
    assert needed(problem, chosen) <= set(plan.hosted)


def test_memory_counts_each_member_once_and_hosting_an_arm_hosts_its_members() -> None:
    problem = make()
    quality = np.full(problem.quality.shape, -np.inf)
    quality[0, 4], quality[1, 5], quality[2, 1], quality[3, 0] = 0.9, 0.9, 0.9, 0.9  # r1, r2, b, a: all four experts
    plan = solve(replace(problem, quality=quality, budget=Budget(memory_gb=174)))
    assert planned_use(problem, plan)["memory_gb"] == 2 * (2 + 5 + 20 + 60)
    assert set(plan.hosted) == {"a", "b", "c", "d", "r1", "r2"}
    quality[1] = [-np.inf, 0.5, -np.inf, -np.inf, 0.9, -np.inf]
    plan = solve(replace(problem, quality=quality, budget=Budget(memory_gb=14)))
    assert set(plan.hosted) == {"a", "b", "r1"}
    assert np.isneginf(plan.quality[:, [2, 3, 5]]).all()
    assert smallest_limit(replace(problem, quality=quality), "memory_gb") == 14.0


def test_an_arm_is_usable_where_its_members_are_hosted_for_others() -> None:
    quality = np.array([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    problem = Problem(
        ("x", "y"),
        ("a", "b", "r"),
        quality,
        np.array([0.5, 0.5]),
        Uses(np.array([1.0, 1.0, 0.0])),
        Budget(memory_gb=2),
        {"r": ("a", "b")},
    )
    plan = solve(problem)
    assert plan.hosted == ("a", "b", "r")
    assert expected_utility(plan, np.array([0.5, 0.5]))[2] == pytest.approx(0.5)


def test_the_largest_share_counts_the_calls_that_arms_make() -> None:
    quality = np.array([[0.5, 0.4, 0.9], [0.5, 0.4, 0.9]])
    half = np.array([0.5, 0.5])
    problem = Problem(("x", "y"), ("a", "b", "r"), quality, half, Uses(), Budget(max_share=0.5), {"r": ("a", "b")})
    plan = solve(problem)
    assert sorted(plan.choice) in (["b", "r"], ["a", "b"])
    assert planned_use(problem, plan)["max_share"] == 0.5 or "r" not in plan.choice
    assert set(plan.duals) == {"max_share:a", "max_share:b"}
    rare = replace(problem, uses=Uses(calls={"r": np.array([[0.5, 0.25]] * 2)}))
    assert solve(rare).choice == ("r", "r")
    assert planned_use(rare, solve(rare))["max_share"] == 0.5
    routed = routed_use(rare, solve(rare), np.eye(2))
    assert routed == {"max_share": 0.5}


@pytest.mark.parametrize("budget", [Budget(mean_cost=8), Budget(max_share=0.5), Budget(mean_cost=15, max_share=0.7)])
def test_requests_routed_at_the_prices_keep_the_rows_whose_uses_differ_by_category(budget: Budget) -> None:
    problem = make(categories=12, seed=3, budget=budget)
    plan = solve(problem, traffic=posteriors(problem, count=4000, seed=1, sharpness=3.0))
    used = routed_use(problem, plan, posteriors(problem, count=4000, seed=2, sharpness=3.0))
    assert set(used) == set(budget.rows())
    assert all(used[row] <= 1.05 * limit for row, limit in budget.rows().items())


def test_a_request_is_charged_the_mean_of_the_prices_by_category_under_its_posterior() -> None:
    problem = make(budget=Budget(mean_cost=8))
    plan = solve(problem)
    dual = plan.duals["mean_cost"]
    assert dual > 0
    np.testing.assert_allclose(plan.price, dual * problem.use("mean_cost"))
    posterior = np.array([0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(expected_price(plan, posterior), dual * posterior @ problem.use("mean_cost"))
    np.testing.assert_allclose(
        expected_utility(plan, posterior), posterior @ problem.quality - expected_price(plan, posterior)
    )


def test_without_a_member_its_arms_are_lost_too() -> None:
    quality = np.array([[0.4, 0.5, 0.3, 0.9]])
    problem = Problem(("x",), ("a", "b", "c", "r"), quality, np.ones(1), members={"r": ("a", "c")})
    assert marginal_values(problem) == {
        "a": pytest.approx(0.4),
        "b": 0.0,
        "c": pytest.approx(0.4),
        "r": pytest.approx(0.4),
    }


@pytest.mark.parametrize(
    ("members", "calls", "problem"),
    [
        ({"r": ("a", "z")}, {}, "members of 'r': a, z"),
        ({"r": ()}, {}, "members of 'r': none"),
        ({"r": ("a", "a")}, {}, "members of 'r': a, a"),
        ({"r": ("a", "b"), "b": ("a",)}, {}, "members of 'r': a, b"),
        ({"q": ("a", "b")}, {}, "members of 'q'"),
        ({"r": ("a", "b")}, {"r": np.ones((1, 3))}, r"calls of r: shape \(1, 3\), not \(1, 2\)"),
    ],
)
def test_members_that_are_no_experts_are_refused(
    members: dict[str, tuple[str, ...]], calls: dict[str, np.ndarray], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        Problem(("x",), ("a", "b", "r"), np.ones((1, 3)), np.ones(1), Uses(calls=calls), Budget(), members)


def test_uses_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"cost: shape \(2,\), not \(1, 2\)"):
        Problem(("x",), ("a", "b"), np.ones((1, 2)), np.ones(1), Uses(cost=np.ones(2)))


def test_arms_come_back_from_the_file_of_the_plan(tmp_path: Path) -> None:
    problem = make(budget=Budget(memory_gb=60, mean_cost=12, max_share=0.9))
    scores = np.random.default_rng(0).uniform(size=(20, 6))
    table = tabulate_softly(problem.categories, problem.experts, np.eye(4)[np.arange(20) % 4], scores)
    PlanInputs(problem, table, None, 1.0, "20 prompts").save(tmp_path)
    found = read_problem(tmp_path)
    assert found is not None
    assert found[0].members == ARMS
    assert solve(found[0]).to_json() == solve(problem).to_json()
