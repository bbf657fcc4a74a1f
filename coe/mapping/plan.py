"""From a problem to an assignment, what each expert is worth in it, and what other budgets would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from coe.errors import ConfigError, DataError
from coe.mapping.assignment import Assignment
from coe.mapping.prices import prices
from coe.mapping.problem import USE_OF_ROW, Budget, Problem
from coe.mapping.program import LARGE, Plan, least, optimum

POINTS = 16
"""Limits that a row is swept with."""


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
    return _quality(problem, _columns(problem, assignment))


def planned_use(problem: Problem, assignment: Assignment) -> dict[str, float]:
    """What the plan uses of every row whose use is known of all experts it needs, `max_share` included."""
    return _use(problem, _columns(problem, assignment), [problem.experts.index(name) for name in assignment.hosted])


def _columns(problem: Problem, assignment: Assignment) -> NDArray[np.int64]:
    return np.array([problem.experts.index(name) for name in assignment.choice], dtype=np.int64)


def _quality(problem: Problem, columns: NDArray[np.int64]) -> float:
    return float(problem.weights @ problem.quality[np.arange(len(columns)), columns])


def _use(problem: Problem, columns: NDArray[np.int64], hosted: Sequence[int]) -> dict[str, float]:
    used = {row: float(problem.weights @ problem.use(row)[columns]) for row in USE_OF_ROW if row != "memory_gb"}
    used["memory_gb"] = float(problem.use("memory_gb")[hosted].sum())
    used["max_share"] = float(np.bincount(columns, weights=problem.weights).max())
    return {row: value for row, value in used.items() if np.isfinite(value)}


def marginal_values(problem: Problem) -> dict[str, float | None]:
    """How much planned quality is lost without each expert; 0 for one not in the plan, None for one it cannot do
    without."""
    plan = optimum(problem)
    best = _quality(problem, plan.choice)
    lost: dict[str, float | None] = dict.fromkeys(problem.experts, 0.0)
    for column in np.unique(plan.choice):
        name = problem.experts[column]
        try:
            rest = problem.without(name)
            choice = optimum(rest).choice
        except (ConfigError, DataError):
            lost[name] = None
        else:
            lost[name] = max(0.0, best - _quality(problem, choice))
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
            plan = optimum(tried)
        except ConfigError:
            continue
        quality = _quality(tried, plan.choice)
        better = not rows or quality > max(earlier.quality for earlier in rows) + 1e-9
        hosted = np.flatnonzero(plan.hosted).tolist()
        used = _use(tried, plan.choice, hosted)
        names = tuple(problem.experts[column] for column in hosted)
        choice = tuple(problem.experts[column] for column in plan.choice)
        rows.append(ParetoRow(limit, quality, used, names, choice, better))
    return rows


def frontiers(problem: Problem, *, points: int = POINTS) -> dict[str, list[ParetoRow]]:
    """By budget row what its limits give while the rest of the budget stands: from the smallest that can be kept to
    the one beyond which nothing is gained. Rows are left out whose use is not known of every expert, or that change
    nothing; of a LARGE problem all but those of its budget."""
    declared = problem.budget.rows()
    rows = [field.name for field in fields(Budget)]
    if problem.quality.size > LARGE:
        rows = [row for row in rows if row in declared]
    return {row: found for row in rows if len(found := sweep(problem, row, _limits(problem, row, points))) > 1}


def _limits(problem: Problem, row: str, points: int) -> list[float]:
    if row in USE_OF_ROW and not (problem.use(row) >= 0).all():
        return []
    low = least(problem, row)
    if low is None:  # no limit of this row mends what others ask
        return []
    free = problem.within(**{row: None})
    plan = optimum(free)
    needed = np.unique(plan.choice)  # without a limit of memory all are hosted, needed or not
    high = _use(free, plan.choice, needed.tolist())[row]
    if not high > low * (1 + 1e-6):
        return []
    spaced = np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)
    between = (float(f"{limit:.4g}") for limit in spaced[1:-1])
    limits = {low, *between, _above(high), problem.budget.rows().get(row, low)}
    return sorted(limit for limit in limits if limit > 0)


def _above(value: float) -> float:
    """So that what is reached by sums in another order is still within it."""
    return value * (1 + 1e-9)
