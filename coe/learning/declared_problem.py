"""What experts.yaml says of a plan: what experts use, the budget, and which categories are pinned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.mapping import Budget, Problem, Uses
from coe.registry import Registry
from coe.scoring import ScoreTable

Array = NDArray[np.float64]

TOKENS_IN, TOKENS_OUT = 500, 300
"""The request that `mean_cost` is reckoned with: tokens read and tokens written."""


def declared_problem(registry: Registry, table: ScoreTable, *, quality: Array, weights: Array) -> Problem:
    """The problem of planning by `quality`, shape (m, k), under the declared budget; declared assignments are pins.

    `table` is over the declared categories (in any order) and experts; `weights` (m,) says how often each one comes.
    """
    pinned = quality.copy()
    for category, expert in registry.assignment.items():
        if category in table.categories:
            _pin(pinned[table.categories.index(category)], table.experts.index(expert))
    budget = Budget(**registry.budget.model_dump())
    return Problem.of(table, quality=pinned, uses=_uses(registry), budget=budget, weights=weights)


def _pin(row: Array, column: int) -> None:
    kept = row[column]
    row[:] = -np.inf
    row[column] = kept


def _uses(registry: Registry) -> Uses:
    def known(values: list[float | None]) -> Array:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    experts = registry.experts
    cost = [(TOKENS_IN * e.prices.input + TOKENS_OUT * e.prices.output) / 1000 for e in experts]
    return Uses(
        memory_gb=known([0.0 if e.runtime == "external" else e.memory_gb for e in experts]),
        active_b=known([e.active_parameters_b for e in experts]),
        cost=np.array(cost),
        latency_ms=known([e.latency_ms for e in experts]),
    )
