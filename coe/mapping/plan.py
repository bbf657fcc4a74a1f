"""From a problem to an assignment, what each expert is worth in it, and what other budgets would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.errors import ConfigError, DataError
from coe.mapping.assignment import Assignment
from coe.mapping.prices import prices
from coe.mapping.problem import USE_OF_ROW, Problem
from coe.mapping.program import Plan, optimum


def solve(problem: Problem, *, traffic: NDArray[np.floating] | None = None) -> Assignment:
    """The best assignment within the budget, exactly; experts that are not hosted may serve nothing.

    `traffic`, shape (n_requests, n_categories), is a sample of the router's posteriors: with it the prices keep the
    mean and share rows for real requests, which seldom belong to one category alone. Raises ConfigError, naming the
    row and the smallest limit that would do, when the budget cannot be kept.
    """
    plan = optimum(problem)
    price, duals = prices(problem, hosted=plan.hosted, traffic=traffic)
    quality = np.where(plan.hosted[None, :], problem.quality, -np.inf)
    runner_up, margin = _runners_up(problem, plan, quality - price)
    return Assignment(
        categories=problem.categories,
        experts=problem.experts,
        quality=quality,
        price=price,
        choice=tuple(problem.experts[column] for column in plan.choice),
        runner_up=runner_up,
        margin=margin,
        hosted=tuple(name for name, there in zip(problem.experts, plan.hosted, strict=True) if there),
        duals=duals,
    )


def _runners_up(
    problem: Problem, plan: Plan, value: NDArray[np.float64]
) -> tuple[tuple[str | None, ...], tuple[float, ...]]:
    """The best hosted expert beside the chosen one and how far behind it is; a category with one expert has none and
    its whole value as margin. A margin below 0 shows a category that the budget pushed to a second best."""
    names: list[str | None] = []
    margins = []
    for row, column in zip(value, plan.choice, strict=True):
        others = row.copy()
        others[column] = -np.inf
        second = int(others.argmax())
        there = bool(np.isfinite(others[second]))
        names.append(problem.experts[second] if there else None)
        margins.append(float(row[column] - others[second]) if there else float(row[column]))
    return tuple(names), tuple(margins)


def planned_quality(problem: Problem, assignment: Assignment) -> float:
    """Mean quality when every category goes to its planned expert."""
    columns = [problem.experts.index(name) for name in assignment.choice]
    return float(problem.weights @ problem.quality[np.arange(len(columns)), columns])


def planned_use(problem: Problem, assignment: Assignment) -> dict[str, float]:
    """What the plan uses of every row whose use is known of all experts it needs, `max_share` included."""
    columns = np.array([problem.experts.index(name) for name in assignment.choice])
    used = {row: float(problem.weights @ problem.use(row)[columns]) for row in USE_OF_ROW if row != "memory_gb"}
    used["memory_gb"] = float(
        problem.use("memory_gb")[[problem.experts.index(name) for name in assignment.hosted]].sum()
    )
    used["max_share"] = float(np.bincount(columns, weights=problem.weights).max())
    return {row: value for row, value in used.items() if np.isfinite(value)}


def marginal_values(problem: Problem) -> dict[str, float | None]:
    """How much planned quality is lost without each expert; 0 for one not in the plan, None for one it cannot do
    without."""
    plan = optimum(problem)
    columns = np.arange(len(problem.categories))
    best = float(problem.weights @ problem.quality[columns, plan.choice])
    lost: dict[str, float | None] = dict.fromkeys(problem.experts, 0.0)
    for column in np.unique(plan.choice):
        name = problem.experts[column]
        try:
            rest = problem.without(name)
            choice = optimum(rest).choice
        except (ConfigError, DataError):
            lost[name] = None
        else:
            lost[name] = max(0.0, best - float(problem.weights @ problem.quality[columns, choice]))
    return lost


@dataclass(frozen=True, slots=True)
class ParetoRow:
    """What one limit of the swept row gives: planned quality and uses; `efficient` where no smaller limit gives as
    much."""

    limit: float
    quality: float
    used: Mapping[str, float]
    hosted: tuple[str, ...]
    choice: tuple[str, ...]
    efficient: bool


def sweep(problem: Problem, row: str, limits: Iterable[float]) -> list[ParetoRow]:
    """A plan for every limit of the budget row `row`, the smallest first; limits that cannot be kept are left out."""
    rows: list[ParetoRow] = []
    for limit in sorted(limits):
        tried = problem.within(**{row: limit})
        try:
            assignment = solve(tried)
        except ConfigError:
            continue
        quality = planned_quality(tried, assignment)
        better = not rows or quality > max(earlier.quality for earlier in rows) + 1e-9
        used = planned_use(tried, assignment)
        rows.append(ParetoRow(limit, quality, used, assignment.hosted, assignment.choice, better))
    return rows
