"""The plan: exact against brute force, budgets that bind, budgets that cannot be kept, prices that keep them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.errors import CoEError, ConfigError, DataError
from coe.planning import solver
from coe.planning.assignment import Assignment, expected_price, expected_utility
from coe.planning.problem import Problem
from coe.planning.solver import marginal_values, planned_quality, planned_use, smallest_limit, solve
from coe.planning.uses import Uses

ARMS = {"r1": ("a", "b"), "r2": ("b", "c", "d")}
BOTH = {"memory_gb": 150, "mean_active_b": 20, "mean_latency_ms": 90, "max_share": 0.6}


def make(*, categories: int = 5, experts: int = 4, seed: int = 0, **budget: float) -> Problem:
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
        budget=budget,
    )


def with_arms(*, categories: int = 4, seed: int = 0, **budget: float) -> Problem:
    """Four experts and two arms, each better than its members; uses differ by category."""
    random = np.random.default_rng(seed)
    size = np.array([2.0, 5.0, 20.0, 60.0])
    quality = np.clip(0.3 + 0.1 * np.log(size) + random.normal(0, 0.1, (categories, 4)), 0, 0.9)
    cost = size * np.exp(random.normal(0, 0.5, (categories, 4)))
    for members in ((0, 1), (1, 2, 3)):
        best = quality[:, members].max(axis=1) + random.uniform(0, 0.1, categories)
        quality, cost = np.column_stack((quality, best)), np.column_stack((cost, 0.7 * cost[:, members].sum(axis=1)))
    calls = {"r2": np.column_stack((np.ones((categories, 1)), random.uniform(0.2, 0.8, (categories, 2))))}
    uses = Uses(np.array([*(2 * size), 0.0, 0.0]), np.tile(10 * size[[0, 1, 2, 3, 1, 3]], (categories, 1)), cost)
    names = tuple(f"c{row}" for row in range(categories)), ("a", "b", "c", "d", *ARMS)
    weights = random.dirichlet(np.ones(categories))
    return Problem(*names, quality, weights, replace(uses, latency_ms=10 * cost, calls=calls), budget, ARMS)


def small(quality: Any, *experts: str, uses: Uses | None = None, **further: Any) -> Problem:
    """Categories of equal weight."""
    quality = np.array(quality, dtype=np.float64)
    names = tuple(f"c{row}" for row in range(len(quality)))
    return Problem(names, experts, quality, np.full(len(names), 1 / len(names)), uses or Uses(), **further)


def used_by(problem: Problem, choice: tuple[int, ...]) -> dict[str, float]:
    """The use of each budget row, counted from the choice alone."""
    rows, columns = np.arange(len(choice)), list(choice)
    called = dict.fromkeys(problem.experts, 0.0)
    for row, column in enumerate(columns):
        name = problem.experts[column]
        members = problem.members.get(name, (name,))
        calls = problem.uses.calls.get(name, np.ones((len(rows), len(members))))
        for one, member in enumerate(members):
            called[member] += problem.weights[row] * calls[row, one]
    hosted = [column for column, name in enumerate(problem.experts) if called[name]]
    means = {row: problem.weights @ problem.use(row)[rows, columns] for row in ("mean_active_b", "mean_cost")}
    return {"memory_gb": problem.use("memory_gb")[hosted].sum(), "max_share": max(called.values()), **means}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("source", [make, with_arms])
@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"memory_gb": 60},
        {"mean_active_b": 25},
        {"mean_cost": 8},
        {"max_share": 0.6},
        {"memory_gb": 160, "mean_active_b": 200, "mean_cost": 9, "max_share": 0.9},
    ],
)
def test_the_plan_is_as_good_as_the_best_of_all_assignments(source: Any, seed: int, budget: dict[str, float]) -> None:
    problem = source(seed=seed, **budget)
    within = [
        problem.weights @ problem.quality[np.arange(len(choice)), list(choice)]
        for choice in itertools.product(range(len(problem.experts)), repeat=len(problem.categories))
        if all(used_by(problem, choice)[row] <= limit + 1e-9 for row, limit in budget.items())
    ]
    if not within:
        with pytest.raises(ConfigError):
            solve(problem)
        return
    plan = solve(problem)
    assert planned_quality(problem, plan) == pytest.approx(max(within), abs=2e-4)
    used = planned_use(problem, plan)
    assert all(used[row] <= limit + 1e-6 for row, limit in budget.items())
    assert {member for name in plan.choice for member in problem.members.get(name, (name,))} <= set(plan.hosted)


@pytest.mark.parametrize(
    ("row", "limit"), [("mean_active_b", 0.5), ("mean_cost", 0.01), ("memory_gb", 0.5), ("max_share", 0.01)]
)
def test_an_impossible_budget_names_the_row_and_a_limit_that_does(row: str, limit: float) -> None:
    problem = make(**{row: limit})
    with pytest.raises(ConfigError, match=rf"{row} {limit} cannot be kept; the smallest feasible limit is") as caught:
        solve(problem)
    smallest = float(caught.value.problems[0].split()[-1])
    solve(replace(problem, budget={row: smallest}))
    with pytest.raises(ConfigError):
        solve(replace(problem, budget={row: smallest * 0.99}))


def test_rows_that_are_impossible_together_are_all_named() -> None:
    with pytest.raises(ConfigError, match="mean_active_b, memory_gb cannot be kept, whichever one is relaxed"):
        solve(make(mean_active_b=0.5, memory_gb=0.5))


def test_a_problem_that_cannot_be_meant_is_refused() -> None:
    problem = make()
    uses = replace(problem.uses, active_b=np.tile([1.0, np.nan, 3.0, 4.0], (5, 1)))
    with pytest.raises(DataError, match=r"mean_active_b needs active_b .* e1;"):
        replace(problem, uses=uses, budget={"mean_active_b": 5})
    with pytest.raises(DataError, match="e0, e1, e2, e3"):
        replace(problem, uses=Uses(), budget={"memory_gb": 5})
    with pytest.raises(ConfigError, match="mean_cost is -1, and must be above 0"):
        make(mean_cost=-1)
    with pytest.raises(DataError, match="no expert may serve c1"):
        small([[1.0], [-np.inf]], "e")
    with pytest.raises(DataError, match=r"cost: shape \(2,\), not \(1, 2\)"):
        small([[1.0, 1.0]], "a", "b", uses=Uses(cost=np.ones(2)))


def test_an_expert_that_may_not_serve_a_category_does_not_get_it() -> None:
    problem = make()
    quality = problem.quality.copy()
    quality[2, :] = [0.1, -np.inf, -np.inf, -np.inf]
    assert solve(replace(problem, quality=quality)).choice[2] == "e0"


def test_runner_up_and_margin_are_those_of_the_hosted_experts() -> None:
    problem = small([[0.9, 0.7, 0.8]], "a", "b", "huge", uses=Uses(memory_gb=np.array([1.0, 1.0, 9.0])))
    free, tight = solve(problem), solve(replace(problem, budget={"memory_gb": 1}))
    assert free.runners_up == (("huge", pytest.approx(0.1)),)
    assert tight.hosted == ("a",)
    assert tight.runners_up == ((None, pytest.approx(0.9)),)


def values(problem: Problem) -> dict[str, float | None]:
    return marginal_values(problem, solve(problem))


def test_leaving_an_expert_out_costs_what_the_next_best_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = small([[0.9, 0.7, 0.1], [0.2, 0.6, 0.1]], "a", "b", "c")
    assert values(problem) == {"a": pytest.approx(0.1), "b": pytest.approx(0.2), "c": 0.0}
    assert values(small([[0.9]], "a")) == {"a": None}  # nothing works without it
    arm = small([[0.4, 0.5, 0.3, 0.9]], "a", "b", "c", "r", members={"r": ("a", "c")})
    assert values(arm) == {"b": 0.0} | dict.fromkeys("acr", pytest.approx(0.4))
    monkeypatch.setattr("coe.planning.solver.MARGINAL_VALUES_SECONDS", 0.0)
    assert values(problem) == {"c": 0.0}


def test_a_plan_that_is_far_from_the_optimum_when_the_time_is_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "MAX_SOLVER_SECONDS", 0.01)
    with pytest.raises(CoEError, match="found no good plan in"):
        solve(make(categories=60, experts=30, memory_gb=100, mean_cost=1))


def posteriors(problem: Problem, *, count: int, seed: int, sharpness: float) -> np.ndarray:
    """Draw posteriors of `count` requests: mixtures around categories drawn by weight."""
    rng = np.random.default_rng(seed)
    true = rng.choice(len(problem.categories), size=count, p=problem.weights)
    logits = rng.normal(size=(count, len(problem.categories)))
    logits[np.arange(count), true] += sharpness
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True)


def routed(plan: Assignment, traffic: np.ndarray) -> np.ndarray:
    return np.array([expected_utility(plan, posterior).argmax() for posterior in traffic])


def routed_use(problem: Problem, plan: Assignment, traffic: np.ndarray) -> dict[str, float]:
    """The use of each limited row but memory, if every request goes to its expert of highest utility."""
    share = np.zeros(problem.quality.shape)
    np.add.at(share.T, routed(plan, traffic), traffic / len(traffic))
    used = {row: float((share * problem.use(row)).sum()) for row in problem.budget if row.startswith("mean_")}
    called = np.zeros(len(problem.experts))
    for expert, column, calls in problem.calls():
        called[expert] += share[:, column] @ calls
    return used | ({"max_share": called.max()} if "max_share" in problem.budget else {})


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("budget", [{"mean_active_b": 20}, {"mean_cost": 1.5}, {"max_share": 0.3}, BOTH])
def test_requests_routed_at_the_plan_s_prices_keep_its_budgets(budget: dict[str, float], sharpness: float) -> None:
    problem = make(categories=12, experts=6, seed=3, **budget)
    plan = solve(problem, traffic=posteriors(problem, count=4000, seed=1, sharpness=sharpness))
    unseen = posteriors(problem, count=4000, seed=2, sharpness=sharpness)
    columns = routed(plan, unseen)
    assert {problem.experts[column] for column in columns} <= set(plan.hosted)
    found = {row: problem.use(row)[0, columns].mean() for row in ("mean_active_b", "mean_cost", "mean_latency_ms")}
    found["max_share"] = np.bincount(columns).max() / len(columns)
    found["memory_gb"] = planned_use(problem, plan)["memory_gb"]
    assert all(found[row] <= 1.05 * limit for row, limit in budget.items())
    known = {row: pytest.approx(found[row]) for row in budget if row != "memory_gb"}
    assert routed_use(problem, plan, unseen) == known


@pytest.mark.parametrize("budget", [{"mean_cost": 8}, {"max_share": 0.5}, {"mean_cost": 15, "max_share": 0.7}])
def test_requests_keep_the_rows_whose_uses_differ_by_category(budget: dict[str, float]) -> None:
    problem = with_arms(categories=12, seed=3, **budget)
    plan = solve(problem, traffic=posteriors(problem, count=4000, seed=1, sharpness=3.0))
    used = routed_use(problem, plan, posteriors(problem, count=4000, seed=2, sharpness=3.0))
    assert set(used) == set(budget)
    assert all(used[row] <= 1.05 * limit for row, limit in budget.items())


def test_a_request_is_charged_the_mean_of_the_prices_by_category_under_its_posterior() -> None:
    problem = with_arms(mean_cost=8)
    plan = solve(problem)
    dual = plan.duals["mean_cost"]
    assert dual > 0
    np.testing.assert_allclose(plan.price, dual * problem.use("mean_cost"))
    posterior = np.array([0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(expected_price(plan, posterior), dual * posterior @ problem.use("mean_cost"))
    charged = posterior @ problem.quality - expected_price(plan, posterior)
    np.testing.assert_allclose(expected_utility(plan, posterior), charged)


def test_nothing_is_charged_where_no_budget_binds_and_a_binding_one_is_spent() -> None:
    plan = solve(make(mean_active_b=1000, max_share=1.0))
    np.testing.assert_allclose(plan.price, 0.0, atol=1e-9)
    problem = make(categories=12, experts=6, seed=3, mean_active_b=20)
    traffic = posteriors(problem, count=4000, seed=1, sharpness=1.0)
    assert routed_use(problem, solve(problem, traffic=traffic), traffic)["mean_active_b"] == pytest.approx(20, rel=0.02)


def test_a_crowd_of_equal_requests_breaks_the_budget_only_where_no_price_parts_it() -> None:
    uses = Uses(active_b=np.tile([70.0, 8.0], (2, 1)))
    problem = replace(small([[0.9, 0.5], [0.8, 0.5]], "large", "small", uses=uses), weights=np.array([0.6, 0.4]))
    traffic = np.eye(2)[[0] * 600 + [1] * 400]
    limited = replace(problem, budget={"mean_active_b": 20})
    assert routed_use(limited, solve(limited, traffic=traffic), traffic)["mean_active_b"] <= 20
    shared = small([[0.9, 0.5], [0.2, 0.8]], "a", "b", budget={"max_share": 0.5})
    plan = solve(shared, traffic=traffic)
    assert np.abs(plan.price).max() <= 1
    assert routed_use(shared, plan, traffic) == {"max_share": pytest.approx(0.6)}


def test_memory_counts_each_member_once_and_hosting_an_arm_hosts_its_members() -> None:
    problem = with_arms()
    quality = np.full(problem.quality.shape, -np.inf)
    quality[0, 4], quality[1, 5], quality[2, 1], quality[3, 0] = 0.9, 0.9, 0.9, 0.9  # r1, r2, b, a: all four experts
    plan = solve(replace(problem, quality=quality, budget={"memory_gb": 174}))
    assert planned_use(problem, plan)["memory_gb"] == 2 * (2 + 5 + 20 + 60)
    assert set(plan.hosted) == {"a", "b", "c", "d", "r1", "r2"}
    quality[1] = [-np.inf, 0.5, -np.inf, -np.inf, 0.9, -np.inf]
    plan = solve(replace(problem, quality=quality, budget={"memory_gb": 14}))
    assert set(plan.hosted) == {"a", "b", "r1"}
    assert np.isneginf(plan.quality[:, [2, 3, 5]]).all()
    assert smallest_limit(replace(problem, quality=quality), "memory_gb") == 14.0
    for_others = small(
        [[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]],
        *("a", "b", "r"),
        uses=Uses(np.array([1.0, 1.0, 0.0])),
        budget={"memory_gb": 2},
        members={"r": ("a", "b")},
    )
    assert expected_utility(solve(for_others), np.array([0.5, 0.5]))[2] == pytest.approx(0.5)


def test_the_largest_share_counts_the_calls_that_arms_make() -> None:
    problem = small([[0.5, 0.4, 0.9]] * 2, "a", "b", "r", budget={"max_share": 0.5}, members={"r": ("a", "b")})
    plan = solve(problem)
    assert sorted(plan.choice) in (["b", "r"], ["a", "b"])
    assert set(plan.duals) == {"max_share:a", "max_share:b"}
    rare = replace(problem, uses=Uses(calls={"r": np.array([[0.5, 0.25]] * 2)}))
    assert solve(rare).choice == ("r", "r")
    assert planned_use(rare, solve(rare))["max_share"] == 0.5
    assert routed_use(rare, solve(rare), np.eye(2)) == {"max_share": pytest.approx(0.5)}
