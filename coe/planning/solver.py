"""Solve a planning problem: the assignment, its quality and uses, and the marginal value of each expert."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coe.errors import CoEError, DataError
from coe.planning.assignment import Assignment
from coe.planning.prices import prices, share_rows
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
    columns = _columns(problem, assignment)
    cells = np.arange(len(columns)), columns
    mass = np.zeros(problem.quality.shape)
    mass[cells] = problem.weights
    used = {row: float(problem.weights @ problem.use(row)[cells]) for row in MEAN_ROWS}
    hosted = [problem.experts.index(name) for name in assignment.hosted]
    used["memory_gb"] = float(problem.use("memory_gb")[hosted].sum())
    used["max_share"] = float((share_rows(problem) @ mass.ravel()).max())
    return {row: value for row, value in used.items() if np.isfinite(value)}


def _columns(problem: Problem, assignment: Assignment) -> NDArray[np.int64]:
    """Return the index of the chosen expert of each of the problem's categories."""
    choice = dict(zip(assignment.categories, assignment.choice, strict=True))
    return np.array([problem.experts.index(choice[name]) for name in problem.categories], dtype=np.int64)


def _quality(problem: Problem, columns: NDArray[np.int64]) -> float:
    return float(problem.weights @ problem.quality[np.arange(len(columns)), columns])


def marginal_values(problem: Problem, assignment: Assignment) -> dict[str, float | None]:
    """Return the loss of planned quality without each expert: 0 if it is not in the optimal plan, None if it is
    indispensable.

    Without an expert, the arms that it is a member of are unavailable too. Experts whose value is not found in
    MARGINAL_VALUES_SECONDS are left out.
    """
    end, choice = time.monotonic() + MARGINAL_VALUES_SECONDS, _columns(problem, assignment)
    best = _quality(problem, choice)
    needed = np.asarray(problem.requirements()[choice].any(axis=0))  # experts that must be hosted
    needed[choice] = True
    lost: dict[str, float | None] = {}
    for name, is_needed in zip(problem.experts, needed.tolist(), strict=True):
        if not is_needed:
            lost[name] = 0.0
        elif time.monotonic() < end:
            try:
                plan = find_solution(rest := problem.without(name))
                lost[name] = None if plan is None else max(0.0, best - _quality(rest, plan.choice))
            except DataError:
                lost[name] = None
            except CoEError:  # the solver found no plan in time
                continue
    return lost
