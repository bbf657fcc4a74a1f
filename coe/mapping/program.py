"""The mixed-integer program of a plan, solved exactly with HiGHS (`scipy.optimize.milp`).

`find_solution` returns the optimal plan, `require_solution` explains why there is none, and `smallest_limit` finds the
smallest feasible limit of a budget row. `TimeBudget` limits the optional calculations that follow a plan: marginal
values and frontiers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import CoEError, ConfigError
from coe.mapping.hosting import HostingSearch
from coe.mapping.prices import lagrangian_duals, mean_rows, share_rows
from coe.mapping.problem import MEAN_ROWS, Array, Problem

MAX_SOLVER_SECONDS = 12.0
"""Time limit of the solver. After it, the better of its best plan and that of a local search is used. It stops earlier
within 0.01 % of the optimum."""
LARGE_PROBLEM_CELLS = 5_000
"""Number of cells (category x expert) above which only the best experts of each category are considered."""
CANDIDATES_PER_CATEGORY, HOSTED_CANDIDATES_PER_CATEGORY = 10, 3
VACUOUS_LIMITS = {"max_share": 1.0}
"""Limits without effect, for rows with a largest value."""


class TimeBudget:
    """A time limit in seconds from now on. `skipped` describes the parts that were left out for lack of time."""

    def __init__(self, seconds: float = 30.0, *, skipped: list[str] | None = None) -> None:
        self._end = time.monotonic() + seconds
        self.skipped: list[str] = [] if skipped is None else skipped

    def seconds_left(self) -> float:
        """Return the remaining seconds, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def part(self, share: float) -> TimeBudget:
        """Return a budget of a share of the remaining time."""
        return TimeBudget(share * self.seconds_left(), skipped=self.skipped)

    @contextmanager
    def attempt(self, what: str, *, share: float = 0.25) -> Iterator[TimeBudget]:
        """Run one of several calculations with a share of the time; a TimeoutError adds `what` to `skipped`."""
        try:
            yield self.part(share)
        except TimeoutError:
            if what not in self.skipped:
                self.skipped.append(what)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """An optimum: the index of each category's expert or arm, and which of them are hosted, shape (n_experts,)."""

    choice: NDArray[np.int64]
    hosted: NDArray[np.bool_]


def require_solution(problem: Problem) -> Solution:
    """Return the plan of highest weighted quality within the budget. Raises ConfigError if there is none."""
    if (plan := find_solution(problem)) is None:
        raise ConfigError(*_diagnosis(problem))
    return plan


def find_solution(problem: Problem, time_budget: TimeBudget | None = None, *, gap: float = 0.0) -> Solution | None:
    """Return the plan of highest weighted quality within the budget; None if the budget is infeasible.

    With `time_budget`, raises TimeoutError if no plan is found in time. A plan that is not proven optimal is accepted
    if it is within the relative `gap` of the bound.
    """
    choice = None
    if time_budget is not None and time_budget.seconds_left() <= 0:
        raise TimeoutError
    if problem.quality.size > LARGE_PROBLEM_CELLS:
        choice = _choose(_reduced(problem), time_budget, gap)
    if choice is None:
        choice = _choose(problem, time_budget, gap)
    if choice is None:
        return None
    if problem.budget.memory_gb is None:
        return Solution(choice, problem.hosting(np.asarray(np.isfinite(problem.quality).any(axis=0))))
    return Solution(choice, problem.hosting(choice))


def smallest_limit(problem: Problem, row: str, time_budget: TimeBudget | None = None) -> float | None:
    """Return the smallest feasible limit of `row` under the rest of the budget, rounded up; None if there is none.

    With `time_budget`, returns the smallest one found in time, and raises TimeoutError if there is none.
    """
    rows = {**problem.budget.rows(), row: VACUOUS_LIMITS.get(row, np.inf)}
    found = _Program(problem, rows=rows).smallest(row, time_budget)
    return None if found is None else float(_round_up(found))


def _choose(problem: Problem, time_budget: TimeBudget | None, gap: float) -> NDArray[np.int64] | None:
    """Return the index of each category's expert; None if the budget is infeasible."""
    program = _Program(problem, rows=problem.budget.rows())
    gain = problem.weights[:, None] * np.where(np.isfinite(problem.quality), problem.quality, 0.0)
    found = program.minimise(-program.spread(gain), time_budget, gap=gap)
    if found is None:
        return None
    shares = np.zeros(problem.quality.shape)  # where arms tie, the solver may divide a category among them
    shares[program.row, program.column] = found[: len(program.row)]
    choice: NDArray[np.int64] = shares.argmax(axis=1)
    if program.is_optimal or problem.budget.memory_gb is None:
        return choice
    return _better(problem, choice, _choose_hosted(problem))


def _choose_hosted(problem: Problem) -> NDArray[np.int64] | None:
    """Return the choice among the experts that a local search hosts; None if it breaks another row."""
    usable = problem.hosting(np.flatnonzero(HostingSearch(problem, _priced(problem)).search()))
    quality = np.where(usable, problem.quality, -np.inf)
    if not np.isfinite(quality).any(axis=1).all():
        return None
    limited = replace(problem.within(memory_gb=None), quality=quality)
    try:
        return _choose(limited, TimeBudget(MAX_SOLVER_SECONDS / 2), gap=np.inf)
    except TimeoutError:
        return None


def _better(problem: Problem, choice: NDArray[np.int64], other: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """Return the choice of higher weighted quality."""
    rows = np.arange(len(choice))
    if other is None or problem.weights @ (problem.quality[rows, other] - problem.quality[rows, choice]) <= 0:
        return choice
    return other


def _priced(problem: Problem) -> Array:
    """Return quality minus the prices of the mean rows if every request belongs to one category."""
    rows = mean_rows(problem)
    if not rows.names:
        return problem.quality
    traffic = np.eye(len(problem.categories))
    return problem.quality - rows.price(lagrangian_duals(problem.quality, problem.weights, traffic, rows))


def _reduced(problem: Problem) -> Problem:
    """Return the problem with fewer cells.

    It keeps each category's best cells at the prices of the mean rows, and the most economical ones, which keep the
    problem feasible. Both are selected among all experts, and among those that a local search hosts.
    """
    value = _priced(problem)
    kept = _candidates(problem, value, CANDIDATES_PER_CATEGORY)
    if "memory_gb" in problem.budget.rows():
        hosted = problem.hosting(np.flatnonzero(HostingSearch(problem, value).search()))
        kept |= _candidates(problem, np.where(hosted, value, -np.inf), HOSTED_CANDIDATES_PER_CATEGORY)
        kept[:, int((problem.requirements() @ problem.use("memory_gb")).argmin())] = True
    return replace(problem, quality=np.where(kept, problem.quality, -np.inf))


def _candidates(problem: Problem, value: Array, count: int) -> NDArray[np.bool_]:
    """Return the `count` cells of highest finite value in each category, and the most economical one by mean row."""
    allowed = np.isfinite(value)
    kept = value >= -np.sort(-value, axis=1)[:, [min(count, len(problem.experts)) - 1]]
    for row in problem.budget.rows().keys() & set(MEAN_ROWS):
        use = np.where(allowed, problem.use(row), np.inf)
        kept[np.arange(len(use)), use.argmin(axis=1)] = True
    return np.asarray(kept & allowed)


class _Program:
    """Variables: one `a` per allowed cell (category `row`, expert or arm `column`), one `z` per column, and `t`.

    sum_k a[m,k] = 1; a[m,k] <= z[k]; z[k] <= z[i] for each member i of an arm k; memory . z <= limit; the mean of each
    use <= its limit; the mean calls of each expert <= t <= max_share.
    """

    def __init__(self, problem: Problem, *, rows: dict[str, float]) -> None:
        self._problem, self._rows = problem, rows
        self.row, self.column = np.nonzero(np.isfinite(problem.quality))
        self._cells, self._experts = len(self.row), len(problem.experts)
        self.size = self._cells + self._experts + 1
        self.is_optimal = False

    def spread(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objective's coefficients from a table (n_categories, n_experts); 0 for `z` and `t`."""
        coefficients = np.zeros(self.size)
        coefficients[: self._cells] = table[self.row, self.column]
        return coefficients

    def minimise(
        self, objective: NDArray[np.float64], time_budget: TimeBudget | None = None, *, gap: float = 0.0
    ) -> NDArray[np.float64] | None:
        """Return the optimal variables; None if infeasible. Raises TimeoutError as `find_solution` does."""
        from scipy.optimize import Bounds, milp

        seconds = MAX_SOLVER_SECONDS if time_budget is None else min(MAX_SOLVER_SECONDS, time_budget.seconds_left())
        if seconds <= 0:
            raise TimeoutError
        upper = np.ones(self.size)
        upper[-1] = self._rows.get("max_share", 1.0)
        found = milp(
            objective,
            constraints=self._constraints(),
            bounds=Bounds(0.0, upper),
            integrality=self._integrality(),
            options={"time_limit": seconds},
        )
        if time_budget is not None and found.status == 1 and (found.x is None or found.mip_gap > gap):
            raise TimeoutError
        if found.x is None and found.status != 2:
            raise CoEError(f"plan: the solver failed ({found.message}); use fewer experts or categories")
        self.is_optimal = found.status == 0
        return None if found.x is None else np.asarray(found.x)

    def _integrality(self) -> NDArray[np.int64]:
        whole = np.ones(self.size, dtype=np.int64)
        whole[-1] = 0
        whole[self._cells : -1][self._problem.is_arm] = 0  # given z of its members, that of an arm is the smallest
        if not set(self._rows) - {"memory_gb"}:
            whole[: self._cells] = 0  # given z, each category selects its best hosted expert, which is integral
        return whole

    def _constraints(self) -> list[Any]:
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_array, csr_array

        cells = np.arange(self._cells)
        one = coo_array((np.ones(self._cells), (self.row, cells)), shape=(len(self._problem.categories), self.size))
        constraints = [LinearConstraint(csr_array(one), 1.0, 1.0)]
        if "memory_gb" in self._rows:
            constraints.append(LinearConstraint(self._links(), -np.inf, 0.0))
            constraints.append(LinearConstraint(self.memory()[None, :], -np.inf, self._rows["memory_gb"]))
        constraints += [
            LinearConstraint(self.mean(row)[None, :], -np.inf, self._rows[row])
            for row in MEAN_ROWS
            if row in self._rows
        ]
        if "max_share" in self._rows:
            constraints.append(LinearConstraint(self._shares(), -np.inf, 0.0))
        return constraints

    def _links(self) -> Any:
        """Return a row `a[m,k] - z[k]` for each cell, and `z[k] - z[i]` for each member of each arm."""
        from scipy.sparse import coo_array, csr_array

        arm, member = np.nonzero(self._problem.requirements() & self._problem.is_arm[:, None])
        below = np.concatenate((np.arange(self._cells), self._cells + arm))
        above = self._cells + np.concatenate((self.column, member))
        links, ones = np.arange(len(below)), np.ones(len(below))
        signs = np.concatenate((ones, -ones))
        places = np.tile(links, 2), np.concatenate((below, above))
        return csr_array(coo_array((signs, places), shape=(len(links), self.size)))

    def _shares(self) -> Any:
        """Return a row for each expert: its mean calls per request, minus `t`."""
        from scipy.sparse import csr_array, hstack

        rows = share_rows(self._problem)
        cells = self.row * len(self._problem.experts) + self.column
        calls = rows[:, cells] * self._problem.weights[self.row]
        count = rows.shape[0]
        hosted, share = csr_array((count, self._experts)), csr_array(np.full((count, 1), -1.0))
        return csr_array(hstack([calls, hosted, share]))

    def memory(self) -> NDArray[np.float64]:
        coefficients = np.zeros(self.size)
        coefficients[self._cells : -1] = self._problem.use("memory_gb")
        return coefficients

    def mean(self, row: str) -> NDArray[np.float64]:
        return self.spread(self._problem.weights[:, None] * self._problem.use(row))

    def smallest(self, row: str, time_budget: TimeBudget | None = None) -> float | None:
        """Return the smallest feasible limit of `row` under the other rows; None if those are infeasible."""
        if row == "memory_gb":
            objective = self.memory()
        elif row == "max_share":
            objective = np.zeros(self.size)
            objective[-1] = 1.0
        else:
            objective = self.mean(row)
        found = self.minimise(objective, time_budget, gap=np.inf)
        return None if found is None else float(objective @ found)


def _diagnosis(problem: Problem) -> list[str]:
    """Explain an infeasible budget: the single row to relax and its smallest limit, or that several rows conflict."""
    rows = problem.budget.rows()
    lines = []
    for row, limit in rows.items():
        if (smallest := smallest_limit(problem, row)) is not None:
            lines.append(f"budget: {row} {limit:g} cannot be kept; the smallest feasible limit is {smallest:.4g}")
    if lines:
        return lines
    alone = {row: _Program(problem, rows={row: VACUOUS_LIMITS.get(row, np.inf)}).smallest(row) for row in rows}
    needs = ", ".join(f"{row} {_round_up(limit)}" for row, limit in alone.items() if limit is not None)
    return [f"budget: no single row is to blame; each alone needs at least {needs}, and together they need more"]


def _round_up(value: float) -> str:
    """Format with four digits, rounded up, so that the reported limit is feasible."""
    rounded = float(f"{value:.4g}")
    step = 10.0 ** (np.floor(np.log10(max(abs(value), 1e-12))) - 3)
    return f"{rounded if rounded >= value else rounded + step:.4g}"
