"""Builds candidate plans: the current plan with the quality rows of some categories replaced, under the budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.learning.retraining.moves import (
    Move,
    shares,
    with_rows,
)
from coe.mapping import Assignment
from coe.mapping.score_table import ScoreTable

Array = NDArray[np.float64]
SolvePlan = Callable[[ScoreTable, Array], Assignment]
"""Solves the assignment of a score table and its quality (m, k) under the declared budget."""


@dataclass(frozen=True, slots=True, eq=False)
class CurrentPlan:
    """The assignment in use and how it served.

    It has decided all requests since `since` (Unix seconds), exploring at `rate` within `loss`. `rounds` counts the
    candidates judged since it was promoted. `charge` is what the declared cost_weight adds to an assignment's prices,
    for each expert or for all. The last test, at `tested_at` (Unix seconds), used `tested` ratings.
    """

    assignment: Assignment
    since: float
    rounds: int
    rate: float
    loss: float
    charge: Array | float = 0.0
    tested: int = 0
    tested_at: float = 0.0

    def charged(self, assignment: Assignment) -> Assignment:
        """The assignment with the prices that requests are decided by."""
        return replace(assignment, price=assignment.price + self.charge)


@dataclass(frozen=True, slots=True, eq=False)
class PlanBuilder:
    """Builds the assignment with the rows of some categories replaced, under the declared budget."""

    current: CurrentPlan
    rows: Array
    solve_plan: SolvePlan
    table: ScoreTable

    def solved(self, categories: Collection[int]) -> Assignment:
        before = self.current.assignment
        found = self.solve_plan(self.table, with_rows(before, self.rows, categories).quality)
        if before.unmeasured is None:
            return found
        unmeasured = before.unmeasured & ~np.isfinite(found.quality)
        return replace(found, unmeasured=unmeasured if unmeasured.any() else None)

    def within_budget(self, moves: Sequence[Move]) -> tuple[Move, ...]:
        """The moves; one is rejected if the budget would make its plan send it, or another category, to another
        expert."""
        order = sorted(
            (number for number, move in enumerate(moves) if move.accepted), key=lambda n: smallest_p(moves[n])
        )
        if self._holds([moves[number] for number in order]):
            return tuple(moves)
        accepted: list[int] = []
        rejected = []
        for number in order:
            if self._holds([moves[one] for one in (*accepted, number)]):
                accepted.append(number)
            else:
                rejected.append(number)
        return tuple(
            replace(move, verdict="breaks the budget") if number in rejected else move
            for number, move in enumerate(moves)
        )

    def _holds(self, moves: Sequence[Move]) -> bool:
        """Whether the solved plan sends each moved category to its target and leaves all others where they are."""
        if not moves:
            return True
        before = self.current.charged(self.current.assignment)
        categories = [before.categories.index(move.category) for move in moves]
        expected = shares(before)
        for category, move in zip(categories, moves, strict=True):
            if move.verdict == "better":
                expected[category] = shares(with_rows(before, self.rows, (category,)))[category]
        after = shares(self.current.charged(self.solved(categories)))
        return bool(np.array_equal(after, expected))


def smallest_p(move: Move) -> float:
    return min(one.above for one in move.contrasts.values())
