"""The mixed-integer program of a plan, solved exactly with HiGHS (`scipy.optimize.milp`).

`find_solution` returns the optimal plan, `require_solution` explains why there is none, and `smallest_limit` finds the
smallest feasible limit of a budget row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import CoEError, ConfigError
from coe.planning.prices import share_rows
from coe.planning.problem import MEAN_ROWS, Problem

MAX_SOLVER_SECONDS = 12.0
"""Time limit of the solver, after which its best plan is used. It stops earlier within 0.01 % of the optimum."""
MAX_GAP = 0.05
"""Largest relative gap to the optimum of a plan that is used; where the solver runs out of time, it may be useless."""
VACUOUS_LIMITS = {"max_share": 1.0}
"""Limits without effect, for rows with a largest value."""


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


def find_solution(problem: Problem) -> Solution | None:
    """Return the plan of highest weighted quality within the budget; None if the budget is infeasible.

    Raises CoEError if the solver finds none within MAX_GAP of the optimum in MAX_SOLVER_SECONDS.
    """
    program = _Program(problem, rows=problem.budget.rows())
    gain = problem.weights[:, None] * np.where(np.isfinite(problem.quality), problem.quality, 0.0)
    found = program.minimise(-program.spread(gain), max_gap=MAX_GAP)
    if found is None:
        return None
    shares = np.zeros(problem.quality.shape)  # where arms tie, the solver may divide a category among them
    shares[program.row, program.column] = found[: len(program.row)]
    choice: NDArray[np.int64] = shares.argmax(axis=1)
    if problem.budget.memory_gb is None:
        return Solution(choice, problem.hosting(np.asarray(np.isfinite(problem.quality).any(axis=0))))
    return Solution(choice, problem.hosting(choice))


def smallest_limit(problem: Problem, row: str) -> float | None:
    """Return the smallest feasible limit of `row` under the rest of the budget, rounded up; None if there is none.

    It is the smallest one found in MAX_SOLVER_SECONDS. Raises CoEError if the solver finds none in this time.
    """
    rows = {**problem.budget.rows(), row: VACUOUS_LIMITS.get(row, np.inf)}
    found = _Program(problem, rows=rows).smallest(row)
    return None if found is None else float(_round_up(found))


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

    def spread(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the objective's coefficients from a table (n_categories, n_experts); 0 for `z` and `t`."""
        coefficients = np.zeros(self.size)
        coefficients[: self._cells] = table[self.row, self.column]
        return coefficients

    def minimise(self, objective: NDArray[np.float64], *, max_gap: float = np.inf) -> NDArray[np.float64] | None:
        """Return the best variables that the solver finds; None if infeasible. Raises CoEError if it finds none within
        the relative `max_gap` of the optimum."""
        from scipy.optimize import Bounds, milp

        upper = np.ones(self.size)
        upper[-1] = self._rows.get("max_share", 1.0)
        found = milp(
            objective,
            constraints=self._constraints(),
            bounds=Bounds(0.0, upper),
            integrality=self._integrality(),
            options={"time_limit": MAX_SOLVER_SECONDS},
        )
        if found.status != 2 and (found.x is None or found.mip_gap > max_gap):
            raise CoEError(
                f"plan: the solver found no good plan in {MAX_SOLVER_SECONDS:g} s ({found.message}); use fewer "
                "experts, categories or rows of the budget"
            )
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

    def smallest(self, row: str) -> float | None:
        """Return the smallest feasible limit of `row` under the other rows; None if those are infeasible."""
        if row == "memory_gb":
            objective = self.memory()
        elif row == "max_share":
            objective = np.zeros(self.size)
            objective[-1] = 1.0
        else:
            objective = self.mean(row)
        found = self.minimise(objective)
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
