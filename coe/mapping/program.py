"""The programs of a plan: the mixed-integer program, solved exactly with HiGHS, and the duals that become prices.

`find_solution` solves `scipy.optimize.milp`. With its hosted experts fixed, the plan is a linear program, whose duals
are the prices of the budget rows (`prices`). `decide()` subtracts an expert's price from its expected quality, so that
single requests keep the budget as the plan does. `TimeBudget` limits the optional calculations that follow a plan:
marginal values and frontiers.
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
from coe.mapping.problem import MEAN_ROWS, Array, Problem

MAX_CUTS = 400
"""Limit of the cutting planes; one row takes about ten."""
DUALITY_GAP = 1e-6
"""Gap in quality at which the duals count as optimal."""
LIMIT_SLACK = 0.01
"""Relative amount by which the traffic sample may exceed a limit."""
MAX_PRICE_RAISES = 80
"""Limit of price raises. The step grows with each raise, so these reach any price."""
MAX_ROW_PRICE = 1000.0
"""Largest price, in quality, of using a whole row: far above any possible gain in quality."""
MAX_SOLVER_SECONDS = 60.0
"""Time limit of the solver, after which its best plan is used. It stops earlier within 0.01 % of the optimum."""
LARGE_PROBLEM_CELLS = 20_000
"""Cells (category x expert) from which on only the best experts of each category are considered."""
CANDIDATES_PER_CATEGORY = 10
VACUOUS_LIMITS = {"max_share": 1.0}
"""Limits without effect, for rows with a largest value."""


class TimeBudget:
    """A limit in seconds from now on. `skipped` describes what did not fit into it."""

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
    """An optimum: the index of each category's expert, and which experts are hosted, shape (n_experts,)."""

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
    if problem.quality.size > LARGE_PROBLEM_CELLS:
        choice = _choose(_reduced(problem), time_budget, gap)
    if choice is None:
        choice = _choose(problem, time_budget, gap)
    if choice is None:
        return None
    if problem.budget.memory_gb is None:
        return Solution(choice, np.asarray(np.isfinite(problem.quality).any(axis=0)))
    return Solution(choice, np.isin(np.arange(len(problem.experts)), choice))


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
    choice = np.zeros(len(problem.categories), dtype=np.int64)
    taken = found[: len(program.row)] > 0.5
    choice[program.row[taken]] = program.column[taken]
    return choice


def _reduced(problem: Problem) -> Problem:
    """Return the problem with fewer cells.

    They are each category's best experts at the prices of the mean rows, the experts that a greedy choice hosts, and
    the most economical ones, which keep the problem feasible.
    """
    _, uses, limits = mean_rows(problem)
    value = problem.quality
    if len(limits):
        value = value - lagrangian_duals(problem.quality, problem.weights, uses, limits) @ uses
    kept = value >= -np.sort(-value, axis=1)[:, [min(CANDIDATES_PER_CATEGORY, len(problem.experts)) - 1]]
    kept[:, [int(np.argmin(problem.use(row))) for row in problem.budget.rows() if row != "max_share"]] = True
    if "memory_gb" in problem.budget.rows():
        kept[:, _greedy(problem, value)] = True
    return replace(problem, quality=np.where(kept, problem.quality, -np.inf))


def _greedy(problem: Problem, value: Array) -> list[int]:
    """Return the experts to host: repeatedly the one that adds most weighted value per memory and still fits."""
    memory = np.maximum(problem.use("memory_gb"), 1e-9)
    left, hosted = problem.budget.rows()["memory_gb"], list[int]()
    finite = np.where(np.isfinite(value), value, value[np.isfinite(value)].min())
    best = np.full(len(problem.categories), finite.min())
    while True:
        added = problem.weights @ np.maximum(finite - best[:, None], 0.0)
        added[memory > left] = 0.0
        if not added.max() > 0:
            return hosted
        chosen = int((added / memory).argmax())
        hosted.append(chosen)
        left -= memory[chosen]
        best = np.maximum(best, finite[:, chosen])


class _Program:
    """Variables: one `a` per allowed cell (category `row`, expert `column`), one `z` per expert, and `t`, the share.

    sum_k a[m,k] = 1; a[m,k] <= z[k]; memory . z <= limit; the mean of each use <= its limit; each expert's share <= t
    <= max_share.
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
        return None if found.x is None else np.asarray(found.x)

    def _integrality(self) -> NDArray[np.int64]:
        whole = np.ones(self.size, dtype=np.int64)
        whole[-1] = 0
        if not set(self._rows) - {"memory_gb"}:
            whole[: self._cells] = 0  # given z, each category selects its best hosted expert, which is integral
        return whole

    def _constraints(self) -> list[Any]:
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_array, csr_array

        cells, weights = np.arange(self._cells), self._problem.weights[self.row]
        one = coo_array((np.ones(self._cells), (self.row, cells)), shape=(len(self._problem.categories), self.size))
        constraints = [LinearConstraint(csr_array(one), 1.0, 1.0)]
        if "memory_gb" in self._rows:
            z = self._cells + self.column
            link = coo_array(
                (np.repeat((1.0, -1.0), self._cells), (np.tile(cells, 2), np.concatenate((cells, z)))),
                shape=(self._cells, self.size),
            )
            constraints.append(LinearConstraint(csr_array(link), -np.inf, 0.0))
            constraints.append(LinearConstraint(self.memory()[None, :], -np.inf, self._rows["memory_gb"]))
        constraints += [
            LinearConstraint(self.mean(row)[None, :], -np.inf, self._rows[row])
            for row in MEAN_ROWS
            if row in self._rows
        ]
        if "max_share" in self._rows:
            share = coo_array((weights, (self.column, cells)), shape=(self._experts, self.size)).tolil()
            share[:, [-1]] = -1.0
            constraints.append(LinearConstraint(csr_array(share), -np.inf, 0.0))
        return constraints

    def memory(self) -> NDArray[np.float64]:
        coefficients = np.zeros(self.size)
        coefficients[self._cells : -1] = self._problem.use("memory_gb")
        return coefficients

    def mean(self, row: str) -> NDArray[np.float64]:
        return self.spread(self._problem.weights[:, None] * self._problem.use(row)[None, :])

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


def prices(
    problem: Problem, *, hosted: NDArray[np.bool_], traffic: NDArray[np.floating] | None
) -> tuple[Array, dict[str, float]]:
    """Return the price of each expert and the dual of each row; `max_share` has one per expert, `max_share:EXPERT`.

    `traffic`, shape (n_requests, n_categories), is a sample of the router's posteriors. Prices fitted to it keep the
    budget on mixed posteriors too, whereas prices for pure categories would move whole categories at once. Without
    traffic, every request belongs to one category.
    """
    names, uses, limits = mean_rows(problem)
    if not names:
        return np.zeros(len(problem.experts)), {}
    gain, mass = _requests(problem, hosted, traffic)
    duals = _raise_prices(gain, mass, uses, limits, lagrangian_duals(gain, mass, uses, limits))
    price = np.where(hosted, duals @ np.where(np.isfinite(uses), uses, 0.0), 0.0)
    return price, dict(zip(names, duals.tolist(), strict=True))


def mean_rows(problem: Problem) -> tuple[list[str], Array, Array]:
    """Return the rows that limit a mean over requests: names, uses (n_rows, n_experts), and limits (n_rows,)."""
    limits = problem.budget.rows()
    names = [row for row in MEAN_ROWS if row in limits]
    uses = [problem.use(row) for row in names]
    values = [limits[row] for row in names]
    if "max_share" in limits:
        names += [f"max_share:{expert}" for expert in problem.experts]
        uses += list(np.eye(len(problem.experts)))
        values += [limits["max_share"]] * len(problem.experts)
    return names, np.array(uses).reshape(len(names), len(problem.experts)), np.array(values)


def _requests(problem: Problem, hosted: NDArray[np.bool_], traffic: NDArray[np.floating] | None) -> tuple[Array, Array]:
    """Return the quality of each expert for each request (-inf: not allowed) and the weight of each request."""
    quality = np.where(hosted[None, :], problem.quality, -np.inf)
    if traffic is None:
        return quality, problem.weights
    may = np.isfinite(quality)
    gain = traffic.astype(np.float64) @ np.where(may, quality, 0.0)
    return np.where(may[traffic.argmax(axis=1)], gain, -np.inf), np.full(len(traffic), 1.0 / len(traffic))


def _raise_prices(gain: Array, mass: Array, uses: Array, limits: Array, duals: Array) -> Array:
    """Raise prices row by row, as little as possible, until the choices of single requests keep the limits.

    At the exact duals, many equal requests (a whole category of certain requests) may be indifferent between two
    experts. All of them then make the same choice, which must not be the one that exceeds the limit.
    """
    step, raised = 1e-4, duals
    for _ in range(MAX_PRICE_RAISES):
        choice = (gain - raised @ uses).argmax(axis=1)
        over = uses[:, choice] @ mass > (1 + LIMIT_SLACK) * limits
        if not over.any():
            return raised
        raised = raised + np.where(over, step * (raised + 0.01 / limits), 0.0)
        step *= 1.2
    return duals  # no price splits equal requests that exceed the limit; higher prices only move them back and forth


def lagrangian_duals(gain: Array, mass: Array, uses: Array, limits: Array) -> Array:
    """Return the duals of assigning requests to experts so that mean quality is highest within the limits.

    `gain` (n_requests, n_experts) is the quality, `mass` (n_requests,) the weight of each request, and the mean of each
    row of `uses` (n_rows, n_experts) must not exceed its limit. The duals minimise the Lagrangian dual function, which
    is convex and piecewise linear in few variables. Kelley's cutting planes bound it by its tangents; each follows from
    the requests' choices at the prices tried.
    """
    from scipy.optimize import linprog

    count = len(limits)
    box = [(0.0, MAX_ROW_PRICE / limit) for limit in limits]
    tangents, heights = np.empty((0, count)), np.empty(0)
    best, lowest, tried = np.zeros(count), np.inf, np.zeros(count)
    for _ in range(MAX_CUTS):
        value = gain - tried @ uses
        choice = value.argmax(axis=1)
        slope = limits - uses[:, choice] @ mass
        height = float(mass @ value[np.arange(len(choice)), choice] + tried @ limits)
        if height < lowest:
            best, lowest = tried, height
        tangents = np.vstack((tangents, slope))
        heights = np.append(heights, height - slope @ tried)
        master = linprog(
            np.append(np.zeros(count), 1.0),
            A_ub=np.column_stack((tangents, -np.ones(len(heights)))),
            b_ub=-heights,
            bounds=[*box, (None, None)],
            method="highs",
        )
        if lowest - master.fun <= DUALITY_GAP:
            break
        tried = master.x[:-1]
    return best
