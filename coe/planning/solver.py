"""Solve a planning problem: the assignment, the marginal value of each expert, and sweeps of a budget row."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.errors import CoEError, DataError
from coe.planning.assignment import Assignment, expected_utility
from coe.planning.prices import mean_rows, normalized, prices, share_rows
from coe.planning.problem import MEAN_ROWS, Problem
from coe.planning.program import find_solution, require_solution
from coe.planning.residual import Residual

MARGINAL_VALUES_SECONDS = 30.0
"""Time after which no further marginal value is calculated."""


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
    return Assignment(
        categories=problem.categories,
        experts=problem.experts,
        quality=np.where(plan.hosted[None, :], problem.quality, -np.inf),
        price=price,
        choice=tuple(problem.experts[column] for column in plan.choice),
        hosted=tuple(name for name, there in zip(problem.experts, plan.hosted, strict=True) if there),
        duals=duals,
        residual=residual,
    )


def best_choice(problem: Problem, quality: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the expert's index of each category in the best plan of another `quality`.

    `quality` has shape (..., n_categories, n_experts), the result one dimension less. Raises ConfigError if the budget
    is infeasible.
    """
    if not problem.budget:
        return np.asarray(quality.argmax(axis=-1))
    tables = quality.reshape(-1, *quality.shape[-2:])
    found = [require_solution(replace(problem, quality=table)).choice for table in tables]
    return np.array(found).reshape(quality.shape[:-1])


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
    if "max_share" in problem.budget:
        used["max_share"] = float(found[len(used) :].max())
    return used


def _columns(problem: Problem, assignment: Assignment) -> NDArray[np.int64]:
    """Return the index of the chosen expert of each of the problem's categories."""
    choice = dict(zip(assignment.categories, assignment.choice, strict=True))
    return np.array([problem.experts.index(choice[name]) for name in problem.categories], dtype=np.int64)


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


def marginal_values(problem: Problem, plan: Assignment) -> dict[str, float | None]:
    """Return the loss of planned quality without each expert: 0 if it is not in the optimal plan, None if it is
    indispensable.

    Without an expert, the arms that it is a member of are unavailable too. Experts whose value is not found in
    MARGINAL_VALUES_SECONDS are left out.
    """
    end, choice = time.monotonic() + MARGINAL_VALUES_SECONDS, _columns(problem, plan)
    best = _quality(problem, choice)
    needed = np.asarray(problem.requirements()[choice].any(axis=0))  # experts that must be hosted
    needed[choice] = True
    lost: dict[str, float | None] = {}
    for name, is_needed in zip(problem.experts, needed.tolist(), strict=True):
        if not is_needed:
            lost[name] = 0.0
        elif time.monotonic() < end:
            with suppress(CoEError):  # the solver found no plan in time
                lost[name] = _lost(problem, name, best)
    return lost


def _lost(problem: Problem, name: str, best: float) -> float | None:
    try:
        plan = find_solution(rest := problem.without(name))
    except DataError:
        return None
    return None if plan is None else max(0.0, best - _quality(rest, plan.choice))


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """The plan at one limit of a budget row. `efficient`: no smaller limit gives the same quality."""

    limit: float
    quality: float
    used: Mapping[str, float]
    hosted: tuple[str, ...]
    efficient: bool


def sweep(problem: Problem, row: str, limits: Iterable[float]) -> list[ParetoRow]:
    """Return a plan for each limit of the budget row `row`, smallest limit first; infeasible limits are left out."""
    rows: list[ParetoRow] = []
    best = -np.inf
    for limit in sorted(limits):
        tried = problem.within(**{row: limit})
        if (plan := find_solution(tried)) is None:
            continue
        quality, hosted = _quality(tried, plan.choice), np.flatnonzero(plan.hosted).tolist()
        names = tuple(tried.experts[column] for column in hosted)
        rows.append(ParetoRow(limit, quality, _use(tried, plan.choice, hosted), names, quality > best + 1e-9))
        best = max(best, quality)
    return rows
