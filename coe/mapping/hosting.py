"""A local search for the experts to host within a memory limit, at fixed prices of the other budget rows.

It finds good plans in about a second where the exact program needs minutes. The program of a large problem considers
the cells of these experts, and if it runs out of time the better of both plans is used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coe.mapping.problem import Array, Problem

MAX_PASSES = 6
"""Limit of passes over all columns; a pass without improvement ends the search."""
Hosted = NDArray[np.bool_]
"""True for hosted experts, shape (n_experts,); False for arms."""


class HostingSearch:
    """Maximises the weighted `value`, shape (n_categories, n_experts), of each category's best usable column.

    A column is usable if the experts that it requires are hosted. Values of -inf are not allowed.
    """

    def __init__(self, problem: Problem, value: Array) -> None:
        self._weights, self._required = problem.weights, problem.requirements()
        self._memory, self._limit = problem.use("memory_gb"), problem.budget.rows()["memory_gb"] * (1 + 1e-9)
        lowest = float(value[np.isfinite(value)].min())
        self._value = np.where(np.isfinite(value), value, lowest - 1.0)  # a category without a column loses 1
        self._lowest = lowest - 1.0

    def search(self) -> Hosted:
        """Return the experts to host: a greedy choice, improved by forcing columns in while that helps."""
        hosted = self._add_greedily(np.zeros(len(self._memory), dtype=np.bool_))
        best = self._scores(hosted[None, :])[0]
        for _ in range(MAX_PASSES):
            before = best
            for column in range(len(self._memory)):
                required = self._required[column]
                if (required & ~hosted).any() and self._memory @ required <= self._limit:
                    tried = self._add_greedily(self._evict_until_fits(hosted | required, required))
                    score = self._scores(tried[None, :])[0]
                    if score > best + 1e-9:
                        hosted, best = tried, score
            if best == before:
                break
        return hosted

    def _scores(self, hosted: Hosted) -> Array:
        """Return the weighted value of each set of hosted experts, shape (n_sets,), from shape (n_sets, n_experts)."""
        usable = ~((~hosted).astype(np.float32) @ self._required.T.astype(np.float32) > 0)
        return np.array(
            [self._weights @ self._value[:, one].max(axis=1, initial=self._lowest) for one in usable], dtype=np.float64
        )

    def _add_greedily(self, hosted: Hosted) -> Hosted:
        """Return `hosted` with columns added greedily: each time the one that adds most value per GB and still fits."""
        while True:
            needed = (self._required & ~hosted) @ self._memory
            fits = (self._required & ~hosted).any(axis=1) & (self._memory @ hosted + needed <= self._limit)
            columns = np.flatnonzero(fits)
            if not len(columns):
                return hosted
            usable = ~(self._required & ~hosted).any(axis=1)
            best = self._value[:, usable].max(axis=1, initial=self._lowest)
            added = self._weights @ np.maximum(self._value[:, columns] - best[:, None], 0.0)
            if not added.max() > 0:
                return hosted
            chosen = columns[int((added / np.maximum(needed[columns], 1e-9)).argmax())]
            hosted = hosted | self._required[chosen]

    def _evict_until_fits(self, hosted: Hosted, forced: Hosted) -> Hosted:
        """Return `hosted` with experts removed until it fits: each time the one that loses least value per GB."""
        while self._memory @ hosted > self._limit:
            experts = np.flatnonzero(hosted & ~forced & (self._memory > 0))
            rest = np.repeat(hosted[None, :], len(experts), axis=0)
            rest[np.arange(len(experts)), experts] = False
            lost = self._scores(hosted[None, :])[0] - self._scores(rest)
            hosted = rest[int((lost / self._memory[experts]).argmin())]
        return hosted
