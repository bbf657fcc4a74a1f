"""The mixed-integer program of a plan, solved exactly with HiGHS (`scipy.optimize.milp`).

How long to go on with what a plan can do without.
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
from coe.mapping.prices import lagrangian, rows
from coe.mapping.problem import MEAN_ROWS, Array, Problem


class TimeBudget:
    """Seconds from now on, and in `missed` what they were not enough for, in words."""

    def __init__(self, seconds: float = 30.0, *, missed: list[str] | None = None) -> None:
        self._end = time.monotonic() + seconds
        self.missed: list[str] = [] if missed is None else missed

    def left(self) -> float:
        """Seconds; 0 where they are over."""
        return max(0.0, self._end - time.monotonic())

    def part(self, share: float) -> TimeBudget:
        """A share of what is left; what it does not take is left for others."""
        return TimeBudget(share * self.left(), missed=self.missed)

    @contextmanager
    def attempt(self, what: str, *, share: float = 0.25) -> Iterator[TimeBudget]:
        """Do one thing of several, of which a hard one must not take the time of all; a TimeoutError leaves it out."""
        try:
            yield self.part(share)
        except TimeoutError:
            if what not in self.missed:
                self.missed.append(what)


SECONDS = 60.0
"""Longest search; the best plan found by then is taken (HiGHS stops by itself within 0.01 % of the optimum)."""
LARGE = 20_000
"""Cells (category x expert) beyond which only each category's likely experts are tried."""
LIKELY = 10
LOOSE = {"max_share": 1.0}
"""Limits that bind nothing, of rows that have a largest."""


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """An optimum: the expert's index per category, and which experts must be there, shape (n_experts,)."""

    choice: NDArray[np.int64]
    hosted: NDArray[np.bool_]


def optimum(problem: Problem) -> Solution:
    """The plan of highest weighted quality within the budget. Raises ConfigError when the budget cannot be kept."""
    if (plan := attainable(problem)) is None:
        raise ConfigError(*_diagnosis(problem))
    return plan


def attainable(problem: Problem, patience: TimeBudget | None = None, *, gap: float = 0.0) -> Solution | None:
    """The same, None when the budget cannot be kept. With `patience` raises TimeoutError where it is not found in that
    time; one that is, but not proven, counts where it is at most the share `gap` below what could be."""
    choice = None
    if problem.quality.size > LARGE:
        choice = _choose(_likely(problem), patience, gap)
    if choice is None:
        choice = _choose(problem, patience, gap)
    if choice is None:
        return None
    if problem.budget.memory_gb is None:
        return Solution(choice, np.asarray(np.isfinite(problem.quality).any(axis=0)))
    return Solution(choice, np.isin(np.arange(len(problem.experts)), choice))


def least(problem: Problem, row: str, patience: TimeBudget | None = None) -> float | None:
    """The smallest limit of `row` that the rest of the budget leaves possible, rounded up; None where there is none.
    With `patience` the smallest found in that time. Raises TimeoutError where none is."""
    rows = {**problem.budget.rows(), row: LOOSE.get(row, np.inf)}
    found = _Program(problem, rows=rows).smallest(row, patience)
    return None if found is None else float(_up(found))


def _choose(problem: Problem, patience: TimeBudget | None, gap: float) -> NDArray[np.int64] | None:
    """The best expert of each category; None where the budget cannot be kept."""
    program = _Program(problem, rows=problem.budget.rows())
    gain = problem.weights[:, None] * np.where(np.isfinite(problem.quality), problem.quality, 0.0)
    found = program.minimise(-program.spread(gain), patience, gap=gap)
    if found is None:
        return None
    choice = np.zeros(len(problem.categories), dtype=np.int64)
    taken = found[: len(program.row)] > 0.5
    choice[program.row[taken]] = program.column[taken]
    return choice


def _likely(problem: Problem) -> Problem:
    """The problem with fewer cells: each category's best experts at the prices of the mean rows, the experts that a
    greedy choice would host, and the most frugal ones, which keep it possible."""
    _, uses, limits = rows(problem)
    value = problem.quality
    if len(limits):
        value = value - lagrangian(problem.quality, problem.weights, uses, limits) @ uses
    kept = value >= -np.sort(-value, axis=1)[:, [min(LIKELY, len(problem.experts)) - 1]]
    kept[:, [int(np.argmin(problem.use(row))) for row in problem.budget.rows() if row != "max_share"]] = True
    if "memory_gb" in problem.budget.rows():
        kept[:, _greedy(problem, value)] = True
    return replace(problem, quality=np.where(kept, problem.quality, -np.inf))


def _greedy(problem: Problem, value: Array) -> list[int]:
    """Experts to host: again and again the one that adds most weighted value for its memory and still fits."""
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

    sum_k a[m,k] = 1; a[m,k] <= z[k] and memory . z <= limit; the mean of each use <= its limit; each expert's share
    <= t <= max_share.
    """

    def __init__(self, problem: Problem, *, rows: dict[str, float]) -> None:
        self._problem, self._rows = problem, rows
        self.row, self.column = np.nonzero(np.isfinite(problem.quality))
        self._cells, self._experts = len(self.row), len(problem.experts)
        self.size = self._cells + self._experts + 1

    def spread(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Coefficients of the `a` from a table (n_categories, n_experts); 0 for the rest."""
        coefficients = np.zeros(self.size)
        coefficients[: self._cells] = table[self.row, self.column]
        return coefficients

    def minimise(
        self, objective: NDArray[np.float64], patience: TimeBudget | None = None, *, gap: float = 0.0
    ) -> NDArray[np.float64] | None:
        """The best variables; None where the rows cannot all be kept. Raises TimeoutError as `attainable` does."""
        from scipy.optimize import Bounds, milp

        seconds = SECONDS if patience is None else min(SECONDS, patience.left())
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
        if patience is not None and found.status == 1 and (found.x is None or found.mip_gap > gap):
            raise TimeoutError
        if found.x is None and found.status != 2:
            raise CoEError(f"plan: the solver gave up ({found.message}); use fewer experts or categories")
        return None if found.x is None else np.asarray(found.x)

    def _integrality(self) -> NDArray[np.int64]:
        whole = np.ones(self.size, dtype=np.int64)
        whole[-1] = 0
        if not set(self._rows) - {"memory_gb"}:
            whole[: self._cells] = 0  # with z fixed each category takes its best hosted expert: whole by itself
        return whole

    def _constraints(self) -> list[Any]:
        from scipy.optimize import LinearConstraint
        from scipy.sparse import coo_array, csr_array

        cells, weights = np.arange(self._cells), self._problem.weights[self.row]
        one = coo_array((np.ones(self._cells), (self.row, cells)), shape=(len(self._problem.categories), self.size))
        made = [LinearConstraint(csr_array(one), 1.0, 1.0)]
        if "memory_gb" in self._rows:
            z = self._cells + self.column
            link = coo_array(
                (np.repeat((1.0, -1.0), self._cells), (np.tile(cells, 2), np.concatenate((cells, z)))),
                shape=(self._cells, self.size),
            )
            made.append(LinearConstraint(csr_array(link), -np.inf, 0.0))
            made.append(LinearConstraint(self.memory()[None, :], -np.inf, self._rows["memory_gb"]))
        made += [
            LinearConstraint(self.mean(row)[None, :], -np.inf, self._rows[row])
            for row in MEAN_ROWS
            if row in self._rows
        ]
        if "max_share" in self._rows:
            share = coo_array((weights, (self.column, cells)), shape=(self._experts, self.size)).tolil()
            share[:, [-1]] = -1.0
            made.append(LinearConstraint(csr_array(share), -np.inf, 0.0))
        return made

    def memory(self) -> NDArray[np.float64]:
        coefficients = np.zeros(self.size)
        coefficients[self._cells : -1] = self._problem.use("memory_gb")
        return coefficients

    def mean(self, row: str) -> NDArray[np.float64]:
        return self.spread(self._problem.weights[:, None] * self._problem.use(row)[None, :])

    def smallest(self, row: str, patience: TimeBudget | None = None) -> float | None:
        """The smallest limit of `row` that the other rows leave possible; None where they cannot be kept anyhow."""
        if row == "memory_gb":
            objective = self.memory()
        elif row == "max_share":
            objective = np.zeros(self.size)
            objective[-1] = 1.0
        else:
            objective = self.mean(row)
        found = self.minimise(objective, patience, gap=np.inf)
        return None if found is None else float(objective @ found)


def _diagnosis(problem: Problem) -> list[str]:
    """Which single row, moved how far, would make the budget possible; else that it takes more than one."""
    rows = problem.budget.rows()
    lines = []
    for row, limit in rows.items():
        if (enough := least(problem, row)) is not None:
            lines.append(f"budget: {row} {limit:g} cannot be kept; the smallest that would do is {enough:.4g}")
    if lines:
        return lines
    alone = {row: _Program(problem, rows={row: LOOSE.get(row, np.inf)}).smallest(row) for row in rows}
    smallest = ", ".join(f"{row} {_up(enough)}" for row, enough in alone.items() if enough is not None)
    return [f"budget: no single row is to blame; each alone needs at least {smallest}, and together they need more"]


def _up(value: float) -> str:
    """Four digits, rounded up, so that the number shown can be kept."""
    shown = float(f"{value:.4g}")
    step = 10.0 ** (np.floor(np.log10(max(abs(value), 1e-12))) - 3)
    return f"{shown if shown >= value else shown + step:.4g}"
