"""From a problem to an assignment, what each expert is worth in it, and what other budgets would give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from coe.errors import DataError
from coe.mapping.assignment import Assignment, expected_utility
from coe.mapping.prices import prices
from coe.mapping.problem import MEAN_ROWS, USE_OF_ROW, Budget, Problem
from coe.mapping.program import LARGE, Solution, TimeBudget, attainable, least, optimum

POINTS = 16
"""Limits that a row is swept with."""
CLOSE = 1e-3
"""Share by which a point of a frontier may be below the best where time is short: nobody sees that in a picture."""


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
    problem: Problem, plan: Solution, value: NDArray[np.float64]
) -> tuple[tuple[str | None, ...], tuple[float, ...]]:
    """The best hosted expert beside the chosen one and how far behind it is; a category with one expert has none and
    its whole value as margin. A margin below 0 shows a category that the budget pushed to a second best."""
    found = [runner_up(problem.experts, row, column) for row, column in zip(value, plan.choice.tolist(), strict=True)]
    return tuple(name for name, _ in found), tuple(margin for _, margin in found)


def runner_up(experts: Sequence[str], value: NDArray[np.float64], column: int) -> tuple[str | None, float]:
    """The best of the `experts` beside the one at `column` by `value`, shape (n_experts,), and its distance."""
    others = value.copy()
    others[column] = -np.inf
    second = int(others.argmax())
    if not np.isfinite(others[second]):
        return None, float(value[column])
    return experts[second], float(value[column] - others[second])


def planned_quality(problem: Problem, assignment: Assignment) -> float:
    """Mean quality when every category goes to its planned expert."""
    return _quality(problem, _columns(problem, assignment))


def planned_use(problem: Problem, assignment: Assignment) -> dict[str, float]:
    """What the plan uses of every row whose use is known of all experts it needs, `max_share` included."""
    return _use(problem, _columns(problem, assignment), [problem.experts.index(name) for name in assignment.hosted])


def routed_use(problem: Problem, assignment: Assignment, traffic: NDArray[np.floating]) -> dict[str, float]:
    """What a sample of posteriors, shape (n_requests, n_categories), uses of every limited row but memory where each
    request goes to who is best for it at the plan's prices."""
    columns = np.array([expected_utility(assignment, posterior).argmax() for posterior in traffic])
    used = {row: float(problem.use(row)[columns].mean()) for row in MEAN_ROWS if row in problem.budget.rows()}
    if problem.budget.max_share is not None:
        used["max_share"] = float(np.bincount(columns).max() / len(columns))
    return used


def _columns(problem: Problem, assignment: Assignment) -> NDArray[np.int64]:
    return np.array([problem.experts.index(name) for name in assignment.choice], dtype=np.int64)


def _quality(problem: Problem, columns: NDArray[np.int64]) -> float:
    return float(problem.weights @ problem.quality[np.arange(len(columns)), columns])


def _use(problem: Problem, columns: NDArray[np.int64], hosted: Sequence[int]) -> dict[str, float]:
    used = {row: float(problem.weights @ problem.use(row)[columns]) for row in USE_OF_ROW if row != "memory_gb"}
    used["memory_gb"] = float(problem.use("memory_gb")[hosted].sum())
    used["max_share"] = float(np.bincount(columns, weights=problem.weights).max())
    return {row: value for row, value in used.items() if np.isfinite(value)}


def marginal_values(
    problem: Problem, plan: Assignment | None = None, *, patience: TimeBudget | None = None
) -> dict[str, float | None]:
    """How much of the quality of `plan`, the best there is, is lost without each expert; 0 for one not in it, None for
    one it cannot do without. Experts are left out for which `patience` is not enough."""
    patience = patience or TimeBudget()
    choice = optimum(problem).choice if plan is None else _columns(problem, plan)
    best = _quality(problem, choice)
    needed = [problem.experts[column] for column in np.unique(choice)]
    lost: dict[str, float | None] = {}
    for name in needed:
        with patience.attempt(f"the worth of {name}") as part:
            lost[name] = _lost(problem, name, best, part)
    return {name: lost.get(name, 0.0) for name in problem.experts if name in lost or name not in needed}


def _lost(problem: Problem, name: str, best: float, patience: TimeBudget) -> float | None:
    try:
        rest = problem.without(name)
    except DataError:
        return None
    plan = attainable(rest, patience)
    return None if plan is None else max(0.0, best - _quality(problem, plan.choice))


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
    tried = [problem.within(**{row: limit}) for limit in limits]
    return _in_order(row, [(one, plan) for one in tried if (plan := attainable(one)) is not None])


def _in_order(row: str, found: Iterable[tuple[Problem, Solution]]) -> list[ParetoRow]:
    """Plans under limits of `row`, the smallest limit first."""
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
    problem: Problem, plan: Assignment | None = None, *, points: int = POINTS, patience: TimeBudget | None = None
) -> dict[str, list[ParetoRow]]:
    """By budget row what its limits give while the rest of the budget stands: from the smallest that can be kept to
    the one beyond which nothing is gained. Rows are left out whose use is not known of every expert, or that change
    nothing; of a LARGE problem all but those of its budget; and rows and limits for which `patience` is not enough.

    `plan` is the problem's, where it is known.
    """
    patience = patience or TimeBudget()
    known: _Known = {} if plan is None else {problem.budget: _plan(problem, plan)}
    rows = [field.name for field in fields(Budget)]
    if problem.quality.size > LARGE:
        rows = [row for row in rows if row in problem.budget.rows()]
    found = {}
    for number, row in enumerate(rows):
        with patience.attempt(f"limits of {row}", share=1 / (len(rows) - number)) as part:
            found[row] = _frontier(problem, row, points, part, known)
    return {row: there for row, there in found.items() if len(there) > 1}


_Known = dict[Budget, Solution | None]


def _plan(problem: Problem, plan: Assignment) -> Solution:
    return Solution(_columns(problem, plan), np.isin(problem.experts, plan.hosted))


def _frontier(problem: Problem, row: str, points: int, patience: TimeBudget, known: _Known) -> list[ParetoRow]:
    found = []
    limits = _limits(problem, row, points, patience, known)
    for limit in (*limits[:1], *limits[:0:-1]):  # the ends first: what lies between them can be guessed
        tried = problem.within(**{row: limit})
        with patience.attempt(f"limits of {row}") as part:
            if (plan := _tried(tried, part, known)) is not None:
                found.append((tried, plan))
    return _in_order(row, found)


def _tried(problem: Problem, patience: TimeBudget, known: _Known) -> Solution | None:
    """The plan under the problem's budget, solved once however many rows ask for it."""
    if problem.budget not in known:
        known[problem.budget] = attainable(problem, patience, gap=CLOSE)
    return known[problem.budget]


def _limits(problem: Problem, row: str, points: int, patience: TimeBudget, known: _Known) -> list[float]:
    if row in USE_OF_ROW and not (problem.use(row) >= 0).all():
        return []
    low = least(problem, row, patience.part(0.25))
    if low is None:  # no limit of this row mends what others ask
        return []
    free = problem.within(**{row: None})
    plan = _tried(free, patience.part(0.5), known)
    if plan is None:
        return []
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
