"""Solve a planning problem: the assignment, its quality and uses, and the marginal value of each expert.

The mixed-integer program of a plan, solved exactly with HiGHS (`scipy.optimize.milp`).

`find_solution` returns the optimal plan, `require_solution` explains why there is none, and `smallest_limit` finds the
smallest feasible limit of a budget row.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import CoEError, ConfigError, DataError
from coe.planning.assignment import Assignment
from coe.planning.problem import MEAN_ROWS, Problem, prices, share_rows
from coe.planning.residual import Residual

MAX_SOLVER_SECONDS = 12.0
"""Time limit of the solver, after which its best plan is used. It stops earlier within 0.01 % of the optimum."""
MAX_GAP = 0.05
"""Largest relative gap to the optimum of a plan that is used; where the solver runs out of time, it may be useless."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """An optimum: the index of each category's expert or arm, and which of them are hosted, shape (n_experts,)."""

    choice: NDArray[np.int64]
    hosted: NDArray[np.bool_]


def require_solution(problem: Problem) -> Solution:
    """Return the plan of highest weighted quality within the budget.

    Raises ConfigError if there is none: with the single row to relax and its smallest limit, or with all rows if they
    are impossible together only.
    """
    if (plan := find_solution(problem)) is not None:
        return plan
    smallest = {row: smallest_limit(problem, row) for row in problem.budget}
    lines = [
        f"budget: {row} {problem.budget[row]:g} cannot be kept; the smallest feasible limit is {limit:.4g}"
        for row, limit in smallest.items()
        if limit is not None
    ]
    raise ConfigError(*lines or [f"budget: {', '.join(problem.budget)} cannot be kept, whichever one is relaxed"])


def find_solution(problem: Problem) -> Solution | None:
    """Return the plan of highest weighted quality within the budget; None if the budget is infeasible.

    Raises CoEError if the solver finds none within MAX_GAP of the optimum in MAX_SOLVER_SECONDS.
    """
    program = _Program(problem, problem.budget)
    gain = problem.weights[:, None] * np.where(np.isfinite(problem.quality), problem.quality, 0.0)
    found = program.minimise(-program.of_cells(gain), max_gap=MAX_GAP)
    if found is None:
        return None
    shares = np.zeros(problem.quality.shape)  # where arms tie, the solver may divide a category among them
    shares[program.row, program.column] = found[: len(program.row)]
    choice: NDArray[np.int64] = shares.argmax(axis=1)
    if "memory_gb" not in problem.budget:
        return Solution(choice, problem.hosting(np.asarray(np.isfinite(problem.quality).any(axis=0))))
    return Solution(choice, problem.hosting(choice))


def smallest_limit(problem: Problem, row: str) -> float | None:
    """Return the smallest feasible limit of `row` under the rest of the budget, rounded up to four digits; None if
    there is none.

    It is the smallest one found in MAX_SOLVER_SECONDS. Raises CoEError if the solver finds none in this time.
    """
    program = _Program(problem, {**problem.budget, row: 1.0 if row == "max_share" else np.inf})
    objective = program.use(row)
    if (found := program.minimise(objective)) is None:
        return None
    smallest = float(objective @ found)
    rounded = float(f"{smallest:.4g}")
    return rounded if rounded >= smallest else rounded + float(10.0 ** (np.floor(np.log10(abs(smallest))) - 3))


class _Program:
    """Variables: one `a` per allowed cell (category `row`, expert or arm `column`), one `z` per column, and `t`.

    sum_k a[m,k] = 1; a[m,k] <= z[k]; z[k] <= z[i] for each member i of an arm k; memory . z <= limit; the mean of each
    use <= its limit; the mean calls of each expert <= t <= max_share.
    """

    def __init__(self, problem: Problem, limits: Mapping[str, float]) -> None:
        self._problem, self._limits = problem, limits
        self.row, self.column = np.nonzero(np.isfinite(problem.quality))
        self._cells, self._experts = len(self.row), len(problem.experts)
        self._size = self._cells + self._experts + 1

    def of_cells(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the coefficients of a table (n_categories, n_experts); 0 for `z` and `t`."""
        coefficients = np.zeros(self._size)
        coefficients[: self._cells] = table[self.row, self.column]
        return coefficients

    def use(self, row: str) -> NDArray[np.float64]:
        """Return the coefficients of what a budget row limits."""
        if row in MEAN_ROWS:
            return self.of_cells(self._problem.weights[:, None] * self._problem.use(row))
        coefficients = np.zeros(self._size)
        if row == "max_share":
            coefficients[-1] = 1.0
        else:
            coefficients[self._cells : -1] = self._problem.use(row)
        return coefficients

    def minimise(self, objective: NDArray[np.float64], *, max_gap: float = np.inf) -> NDArray[np.float64] | None:
        """Return the best variables that the solver finds; None if infeasible. Raises CoEError if it finds none within
        the relative `max_gap` of the optimum."""
        from scipy.optimize import Bounds, milp

        upper, whole = np.ones(self._size), np.ones(self._size, dtype=np.int64)
        upper[-1], whole[-1] = self._limits.get("max_share", 1.0), 0
        whole[self._cells : -1][self._problem.is_arm] = 0  # given z of its members, that of an arm is the smallest
        if not set(self._limits) - {"memory_gb"}:
            whole[: self._cells] = 0  # given z, each category selects its best hosted expert, which is integral
        found = milp(
            objective,
            constraints=self._constraints(),
            bounds=Bounds(0.0, upper),
            integrality=whole,
            options={"time_limit": MAX_SOLVER_SECONDS},
        )
        if found.status != 2 and (found.x is None or found.mip_gap > max_gap):
            raise CoEError(
                f"plan: the solver found no good plan in {MAX_SOLVER_SECONDS:g} s ({found.message}); use fewer "
                "experts, categories or rows of the budget"
            )
        return None if found.x is None else np.asarray(found.x)

    def _constraints(self) -> list[Any]:
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_array, csr_array

        cells = np.arange(self._cells)
        one = coo_array((np.ones(self._cells), (self.row, cells)), shape=(len(self._problem.categories), self._size))
        constraints = [LinearConstraint(csr_array(one), 1.0, 1.0)]
        if "memory_gb" in self._limits:
            constraints.append(LinearConstraint(self._links(), -np.inf, 0.0))
        constraints += [
            LinearConstraint(self.use(row)[None, :], -np.inf, self._limits[row])
            for row in ("memory_gb", *MEAN_ROWS)
            if row in self._limits
        ]
        if "max_share" in self._limits:
            constraints.append(LinearConstraint(self._shares(), -np.inf, 0.0))
        return constraints

    def _links(self) -> Any:
        """Return a row `a[m,k] - z[k]` for each cell, and `z[k] - z[i]` for each member of each arm."""
        from scipy.sparse import coo_array, csr_array

        arm, member = np.nonzero(self._problem.requirements() & self._problem.is_arm[:, None])
        below = np.concatenate((np.arange(self._cells), self._cells + arm))
        above = self._cells + np.concatenate((self.column, member))
        links = np.arange(len(below))
        places = np.tile(links, 2), np.concatenate((below, above))
        return csr_array(coo_array((np.repeat([1.0, -1.0], len(links)), places), shape=(len(links), self._size)))

    def _shares(self) -> Any:
        """Return a row for each expert: its mean calls per request, minus `t`."""
        from scipy.sparse import csr_array, hstack

        rows = share_rows(self._problem)
        calls = rows[:, self.row * self._experts + self.column] * self._problem.weights[self.row]
        hosted, share = csr_array((rows.shape[0], self._experts)), csr_array(np.full((rows.shape[0], 1), -1.0))
        return csr_array(hstack([calls, hosted, share]))


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
