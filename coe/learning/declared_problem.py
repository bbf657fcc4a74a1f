"""What experts.yaml says of a plan: what experts use, the budget, and which categories are pinned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.mapping import Budget, Problem, declared_uses
from coe.mapping.score_table import ScoreTable
from coe.registry import Registry

Array = NDArray[np.float64]


def declared_problem(registry: Registry, table: ScoreTable, *, quality: Array, weights: Array) -> Problem:
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


def _pin(row: Array, column: int) -> None:
    kept = row[column]
    row[:] = -np.inf
    row[column] = kept
