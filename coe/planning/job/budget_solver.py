"""Solves plans under the declared budget, for the mix of requests in an experience.

experts.yaml gives what each expert uses, the budget and the pinned categories. Learned plans use shrunk means, and
measured plans lower confidence bounds. By a lower bound, an expert with few ratings would lose its categories and its
exploration, and would get no more ratings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from coe.learning.experience import Experience
from coe.learning.refit import Refit
from coe.planning.assignment import Assignment
from coe.planning.grid import Array
from coe.planning.plan import Plan, declared_digests, round_traffic
from coe.planning.problem import Problem
from coe.planning.residual import Residual
from coe.planning.score_table import ScoreTable
from coe.planning.solver import marginal_values, solve
from coe.planning.uses import MeasuredUses, declared_uses
from coe.recipes.fitting.columns import RecipeColumns
from coe.registry import Registry


def declared_problem(
    registry: Registry,
    table: ScoreTable,
    *,
    quality: Array,
    weights: Array,
    measured_uses: MeasuredUses | None = None,
    recipes: RecipeColumns | None = None,
) -> Problem:
    """The problem of planning by `quality`, shape (m, k), under the declared budget; declared assignments are pins.

    `table` is over the declared categories (in any order) and experts; `weights` (m,) is the share of each category.
    Tokens and latency are the measured ones, where there are any. The last columns of the table are the arms of
    `recipes`.
    """
    pinned, recipes = quality.copy(), recipes or RecipeColumns()
    for row, category in enumerate(table.categories):
        if (expert := registry.assignment.get(category)) is not None:
            pinned[row, np.array(table.experts) != expert] = -np.inf
    experts = table.experts[: len(table.experts) - len(recipes.arms)]
    uses = declared_uses(registry, table.categories, experts, measured=measured_uses)
    return Problem.of(
        table,
        quality=pinned,
        uses=uses.joined(recipes.uses, len(recipes.arms)),
        budget=registry.budget.model_dump(exclude_none=True),
        weights=weights,
        members=recipes.members,
    )


PRICE_SAMPLE_SIZE = 4000
"""Requests whose posteriors the prices are fitted to."""


@dataclass(frozen=True, slots=True, eq=False)
class BudgetSolver:
    """Solves plans for the requests of `experience` under the budget that `registry` declares.

    `measured_uses` are those of the plan in use, `recipes` its arms, and `residual` the one to plan with.
    """

    registry: Registry
    experience: Experience
    measured_uses: MeasuredUses = field(default_factory=MeasuredUses.nothing)
    recipes: RecipeColumns = field(default_factory=RecipeColumns)
    residual: Residual | None = None

    def __call__(self, table: ScoreTable, quality: Array) -> Assignment:
        """The plan of this quality, shape (m, k)."""
        problem = self._problem(table, quality)
        return solve(problem, traffic=self._traffic(problem), residual=self.residual)

    def plan(
        self, candidate: Assignment, refit: Refit, *, measured: ScoreTable | None, reassigned: tuple[str, ...] = ()
    ) -> Plan:
        """The plan of a candidate, with the evidence behind it."""
        problem = self._problem(refit.table, candidate.quality)
        return Plan(
            candidate,
            problem,
            refit.table,
            f"the feedback on {int(self.experience.rated.sum())} requests",
            pseudo_count=refit.weighting.pseudo_count,
            measured=measured,
            feedback=refit.feedback,
            reassigned=reassigned,
            measured_uses=self.measured_uses,
            pins=self.registry.assignment,
            declared=declared_digests(self.registry),
            value_of_expert=marginal_values(problem, candidate),
            traffic=self._traffic(problem),
        )

    def _problem(self, table: ScoreTable, quality: Array) -> Problem:
        weights = np.maximum(self.experience.posterior.sum(axis=0, dtype=np.float64), 1.0)
        return declared_problem(
            self.registry,
            table,
            quality=quality,
            weights=weights,
            measured_uses=self.measured_uses,
            recipes=self.recipes,
        )

    def _traffic(self, problem: Problem) -> Array | None:
        """A sample of posteriors; None where no price depends on traffic."""
        if not problem.budget.keys() - {"memory_gb"}:
            return None
        sample = np.random.default_rng(0).permutation(len(self.experience))[:PRICE_SAMPLE_SIZE]
        return round_traffic(self.experience.posterior[sample])
