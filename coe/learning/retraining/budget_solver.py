"""Plans under the declared budget, for the mix of requests that an experience has.

What experts.yaml says of a plan: what experts use, the budget, and which categories are pinned.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.learning.estimation.experience import Experience
from coe.learning.estimation.refit import Refit
from coe.mapping import Assignment, Budget, Dependencies, PlanInputs, Problem, declared_uses, round_traffic, solve
from coe.mapping.score_table import ScoreTable
from coe.registry import Registry

Array_declared_problem = NDArray[np.float64]


def declared_problem(
    registry: Registry, table: ScoreTable, *, quality: Array_declared_problem, weights: Array_declared_problem
) -> Problem:
    """The problem of planning by `quality`, shape (m, k), under the declared budget; declared assignments are pins.

    `table` is over the declared categories (in any order) and experts; `weights` (m,) says how often each one comes.
    """
    pinned = quality.copy()
    for category, expert in registry.assignment.items():
        if category in table.categories:
            _pin(pinned[table.categories.index(category)], table.experts.index(expert))
    budget = Budget(**registry.budget.model_dump())
    return Problem.of(
        table, quality=pinned, uses=declared_uses(registry, table.experts), budget=budget, weights=weights
    )


def _pin(row: Array_declared_problem, column: int) -> None:
    kept = row[column]
    row[:] = -np.inf
    row[column] = kept


Array = NDArray[np.float64]
SAMPLE = 4000
"""Requests whose posteriors the prices are fitted to."""


@dataclass(frozen=True, slots=True, eq=False)
class Budgeted:
    """By shrunk means, not by lower bounds as of measured scores: an expert that is little tried would lose by its
    bound alone, be explored no more, and stay unknown."""

    registry: Registry
    experience: Experience

    def __call__(self, table: ScoreTable, quality: Array) -> Assignment:
        """The plan by that quality, shape (m, k)."""
        problem = self._problem(table, quality)
        return solve(problem, traffic=self._traffic(problem))

    def basis(
        self, refit: Refit, quality: Array, *, measured: ScoreTable | None, moved: tuple[str, ...] = ()
    ) -> PlanInputs:
        """The data that the plan of this quality is solved from, and the evidence behind it."""
        problem = self._problem(refit.table, quality)
        return PlanInputs(
            problem,
            refit.table,
            self._traffic(problem),
            deviations=0.0,
            source=f"the feedback on {int(self.experience.rated.sum())} requests",
            pseudo_count=refit.weighting.pseudo_count,
            measured=measured,
            learnt=refit.learnt,
            moved=moved,
            dependencies=Dependencies.of(self.registry),
        )

    def _problem(self, table: ScoreTable, quality: Array) -> Problem:
        weights = np.maximum(self.experience.posterior.sum(axis=0, dtype=np.float64), 1.0)
        return declared_problem(self.registry, table, quality=quality, weights=weights)

    def _traffic(self, problem: Problem) -> Array | None:
        """None where no price depends on it."""
        if not problem.budget.rows().keys() - {"memory_gb"}:
            return None
        sample = np.random.default_rng(0).permutation(len(self.experience))[:SAMPLE]
        return round_traffic(self.experience.posterior[sample])
