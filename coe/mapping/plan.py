"""Solve a planning problem: the assignment, the marginal value of each expert, and frontiers of the budget rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.mapping.assignment import Assignment, expected_utility
from coe.mapping.prices import mean_rows, normalized, prices, share_rows
from coe.mapping.problem import MEAN_ROWS, USE_OF_ROW, Budget, Problem
from coe.mapping.program import (
    LARGE_PROBLEM_CELLS,
    Solution,
    TimeBudget,
    find_solution,
    require_solution,
    smallest_limit,
)
from coe.mapping.residual import Residual

FRONTIER_POINTS = 16
"""Limits per budget row on its frontier."""
FRONTIER_MIP_GAP = 1e-3
"""Relative gap to the optimum that a point of a frontier may have; it is invisible in a plot."""


def solve(
    problem: Problem, *, traffic: NDArray[np.floating] | None = None, residual: Residual | None = None
) -> Assignment:
    """Return the optimal assignment within the budget. Only hosted experts, which the plan keeps running, serve.

    `traffic`, shape (n_requests, n_categories), is a sample of the router's posteriors. With it, the prices are
    fitted so that real requests, which mix categories, stay within the mean budgets and `max_share`; with a `residual`
    over any names, so that its measured prompts do. Raises ConfigError with the row and its smallest feasible limit if
    the budget is infeasible.
    """
    plan = require_solution(problem)
    residual = None if residual is None else residual.over(problem.categories, problem.experts)
    price, duals = prices(problem, hosted=plan.hosted, traffic=traffic, residual=residual)
    quality = np.where(plan.hosted[None, :], problem.quality, -np.inf)
    seconds = [runner_up(problem.experts, *pair) for pair in zip(quality - price, plan.choice.tolist(), strict=True)]
    return Assignment(
        categories=problem.categories,
        experts=problem.experts,
        quality=quality,
        price=price,
        choice=tuple(problem.experts[column] for column in plan.choice),
        runner_up=tuple(name for name, _ in seconds),
        margin=tuple(margin for _, margin in seconds),
        hosted=tuple(name for name, there in zip(problem.experts, plan.hosted, strict=True) if there),
        duals=duals,
        residual=residual,
    )


def best_choice(problem: Problem, quality: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the expert's index of each category in the best plan of another `quality`.

    `quality` has shape (..., n_categories, n_experts), the result one dimension less. Raises ConfigError if the budget
    is infeasible.
    """
    if not problem.budget.rows():
        return np.asarray(quality.argmax(axis=-1))
    tables = quality.reshape(-1, *quality.shape[-2:])
    found = [require_solution(replace(problem, quality=table)).choice for table in tables]
    return np.array(found).reshape(quality.shape[:-1])


def runner_up(experts: Sequence[str], utility: NDArray[np.float64], column: int) -> tuple[str | None, float]:
    """Return the best expert besides the one at `column` by `utility`, shape (n_experts,), and its distance.

    A single expert has no runner-up, and its whole utility as distance. A negative distance means that the budget
    forced a second-best expert.
    """
    others = utility.copy()
    others[column] = -np.inf
    second = int(others.argmax())
    if not np.isfinite(others[second]):
        return None, float(utility[column])
    return experts[second], float(utility[column] - others[second])


def planned_quality(problem: Problem, assignment: Assignment) -> float:
    """Return the mean quality if every category goes to its planned expert."""
    return _quality(problem, _columns(problem, assignment))


def planned_use(problem: Problem, assignment: Assignment) -> dict[str, float]:
    """Return the plan's use of each budget row, `max_share` included, if known of all experts in the plan."""
    return _use(problem, _columns(problem, assignment), [problem.experts.index(name) for name in assignment.hosted])


def routed_use(problem: Problem, assignment: Assignment, traffic: NDArray[np.floating]) -> dict[str, float]:
    """Return the use of each limited row but memory if every request goes to its expert of highest utility.

    `traffic` is a sample of posteriors, shape (n_requests, n_categories). With a residual, it is its prompts instead.
    """
    rows, residual = mean_rows(problem), assignment.residual
    posteriors = normalized(traffic if residual is None else residual.posteriors)
    utility = np.array([expected_utility(assignment, posterior) for posterior in posteriors])
    mass = np.ones(len(posteriors))
    if residual is not None:
        utility, mass = utility + residual.left_out, residual.mass(problem.weights)
    found = rows.mean_uses(posteriors, mass, utility.argmax(axis=1)) / mass.sum()
    used = {row: float(value) for row, value in zip(rows.names, found, strict=True) if row in MEAN_ROWS}
    if problem.budget.max_share is not None:
        used["max_share"] = float(found[len(used) :].max())
    return used


def _columns(problem: Problem, assignment: Assignment) -> NDArray[np.int64]:
    return np.array([problem.experts.index(name) for name in assignment.choice], dtype=np.int64)


def _quality(problem: Problem, columns: NDArray[np.int64]) -> float:
    return float(problem.weights @ problem.quality[np.arange(len(columns)), columns])


def _use(problem: Problem, columns: NDArray[np.int64], hosted: Sequence[int]) -> dict[str, float]:
    cells = np.arange(len(columns)), columns
    mass = np.zeros(problem.quality.shape)
    mass[cells] = problem.weights
    used = {row: float(problem.weights @ problem.use(row)[cells]) for row in MEAN_ROWS}
    used["memory_gb"] = float(problem.use("memory_gb")[hosted].sum())
    used["max_share"] = float((share_rows(problem) @ mass.ravel()).max())
    return {row: value for row, value in used.items() if np.isfinite(value)}


def marginal_values(
    problem: Problem, plan: Assignment | None = None, *, time_budget: TimeBudget | None = None
) -> dict[str, float | None]:
    """Return the loss of planned quality without each expert: 0 if it is not in the plan, None if it is indispensable.

    Without an expert, the arms that it is a member of are unavailable too. `plan` is the optimal one, if known. Experts
    for which `time_budget` is too short are left out.
    """
    time_budget = time_budget or TimeBudget()
    choice = require_solution(problem).choice if plan is None else _columns(problem, plan)
    best = _quality(problem, choice)
    needed = [problem.experts[column] for column in _needed(problem, choice)]
    lost: dict[str, float | None] = {}
    for name in needed:
        with time_budget.attempt(f"the value of {name}") as part:
            lost[name] = _lost(problem, name, best, part)
    return {name: lost.get(name, 0.0) for name in problem.experts if name in lost or name not in needed}


def _needed(problem: Problem, choice: NDArray[np.int64]) -> list[int]:
    """Return the chosen columns and the experts that must be hosted for them, by index."""
    hosted = np.flatnonzero(problem.requirements()[choice].any(axis=0))
    return sorted({*choice.tolist(), *hosted.tolist()})


def _lost(problem: Problem, name: str, best: float, time_budget: TimeBudget) -> float | None:
    try:
        rest = problem.without(name)
    except DataError:
        return None
    plan = find_solution(rest, time_budget)
    return None if plan is None else max(0.0, best - _quality(problem, plan.choice))


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """The plan at one limit of a budget row. `efficient`: no smaller limit gives the same quality."""

    limit: float
    quality: float
    used: Mapping[str, float]
    hosted: tuple[str, ...]
    choice: tuple[str, ...]
    efficient: bool


def sweep(problem: Problem, row: str, limits: Iterable[float]) -> list[ParetoRow]:
    """Return a plan for each limit of the budget row `row`, smallest limit first; infeasible limits are left out."""
    tried = [problem.within(**{row: limit}) for limit in limits]
    return _pareto_rows(row, [(one, plan) for one in tried if (plan := find_solution(one)) is not None])


def _pareto_rows(row: str, found: Iterable[tuple[Problem, Solution]]) -> list[ParetoRow]:
    """Sort plans by their limit of `row` and mark the efficient ones."""
    rows: list[ParetoRow] = []
    for limit, tried, plan in sorted(((one.budget.rows()[row], one, plan) for one, plan in found), key=itemgetter(0)):
        quality = _quality(tried, plan.choice)
        better = not rows or quality > max(earlier.quality for earlier in rows) + 1e-9
        hosted = np.flatnonzero(plan.hosted).tolist()
        used = _use(tried, plan.choice, hosted)
        names = tuple(tried.experts[column] for column in hosted)
        choice = tuple(tried.experts[column] for column in plan.choice)
        rows.append(ParetoRow(limit, quality, used, names, choice, better))
    return rows


def frontiers(
    problem: Problem, plan: Assignment | None = None, *, time_budget: TimeBudget | None = None
) -> dict[str, list[ParetoRow]]:
    """Return the Pareto frontier of each budget row with the rest of the budget fixed.

    A frontier starts at the smallest feasible limit and ends where a larger limit gains nothing. It leaves out rows
    whose use is unknown for an expert, rows without effect, and limits for which `time_budget` is too short. For a
    problem of more than LARGE_PROBLEM_CELLS it also leaves out rows that the budget does not limit. `plan` is the
    optimal one, if known.
    """
    time_budget = time_budget or TimeBudget()
    solved: _Solved = {}
    if plan is not None:
        solved[problem.budget] = Solution(_columns(problem, plan), np.isin(problem.experts, plan.hosted))
    rows = [field.name for field in fields(Budget)]
    if problem.quality.size > LARGE_PROBLEM_CELLS:
        rows = [row for row in rows if row in problem.budget.rows()]
    found = {}
    for number, row in enumerate(rows):
        with time_budget.attempt(f"limits of {row}", share=1 / (len(rows) - number)) as part:
            found[row] = _frontier(problem, row, part, solved)
    return {row: there for row, there in found.items() if len(there) > 1}


_Solved = dict[Budget, Solution | None]
"""Plans by budget, None for an infeasible one."""


def _frontier(problem: Problem, row: str, time_budget: TimeBudget, solved: _Solved) -> list[ParetoRow]:
    found = []
    limits = _limits(problem, row, time_budget, solved)
    for limit in (*limits[:1], *limits[:0:-1]):  # both ends first: points between them can be interpolated
        tried = problem.within(**{row: limit})
        with time_budget.attempt(f"limits of {row}") as part:
            if (plan := _solve_once(tried, part, solved)) is not None:
                found.append((tried, plan))
    return _pareto_rows(row, found)


def _solve_once(problem: Problem, time_budget: TimeBudget, solved: _Solved) -> Solution | None:
    """Return the plan under the problem's budget; each budget is solved once."""
    if problem.budget not in solved:
        solved[problem.budget] = find_solution(problem, time_budget, gap=FRONTIER_MIP_GAP)
    return solved[problem.budget]


def _limits(problem: Problem, row: str, time_budget: TimeBudget, solved: _Solved) -> list[float]:
    if row in USE_OF_ROW and not (problem.use(row) >= 0).all():
        return []
    low = smallest_limit(problem, row, time_budget.part(0.25))
    if low is None:  # the other rows are infeasible
        return []
    free = problem.within(**{row: None})
    plan = _solve_once(free, time_budget.part(0.5), solved)
    if plan is None:
        return []
    needed = _needed(free, plan.choice)  # without a memory limit, unused experts are hosted too
    high = _use(free, plan.choice, needed)[row]
    if not high > low * (1 + 1e-6):
        return []
    spaced = np.geomspace(low, high, FRONTIER_POINTS) if low > 0 else np.linspace(low, high, FRONTIER_POINTS)
    between = (float(f"{limit:.4g}") for limit in spaced[1:-1])
    above = high * (1 + 1e-9)  # sums in another order have rounding errors
    limits = {low, *between, above, problem.budget.rows().get(row, low)}
    return sorted(limit for limit in limits if limit > 0)
