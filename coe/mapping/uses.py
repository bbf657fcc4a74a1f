"""Resource uses of experts: memory, and by category the active parameters, cost and latency of a request.

`coe score` measures the tokens and the latency of every answer. `MeasuredUses` holds their means by category and
expert, from which `declared_uses` calculates costs at the declared prices. Where nothing was measured, a request has
ASSUMED_INPUT_TOKENS and ASSUMED_OUTPUT_TOKENS, and the declared latency. A plan's budget limits these uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.mapping.score_table import PSEUDO_COUNT, ScoreTable, tabulate_softly
from coe.registry import Registry

Array = NDArray[np.float64]
ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS = 500, 300
"""Tokens of a request to an expert whose tokens were not measured."""
MEASURES = ("input_tokens", "output_tokens", "latency_ms")
"""Measures of an answer by `coe score`."""


@dataclass(frozen=True, slots=True, eq=False)
class Uses:
    """Resource uses of each expert: NaN where unknown, None if unknown for all experts.

    `memory_gb` has shape (n_experts,). The others are means per request, of shape (n_categories, n_experts). `calls`
    maps a recipe's arm to the mean calls of each of its members, shape (n_categories, n_members); an arm that it lacks
    calls each member once.
    """

    memory_gb: Array | None = None
    active_b: Array | None = None
    cost: Array | None = None
    latency_ms: Array | None = None
    calls: Mapping[str, Array] = field(default_factory=dict)

    @classmethod
    def uniform(
        cls,
        categories: int,
        *,
        memory_gb: Array | None = None,
        active_b: Array | None = None,
        cost: Array | None = None,
        latency_ms: Array | None = None,
    ) -> Uses:
        """Return uses that are equal in all `categories`, from arrays of shape (n_experts,)."""

        def repeated(use: Array | None) -> Array | None:
            return None if use is None else np.tile(use, (categories, 1))

        return cls(memory_gb, repeated(active_b), repeated(cost), repeated(latency_ms))

    def part(self, rows: Sequence[int], columns: Sequence[int]) -> Uses:
        """Return the uses of some categories and experts, by index."""

        def cells(use: Array | None) -> Array | None:
            return None if use is None else use[np.ix_(rows, columns)]

        memory = None if self.memory_gb is None else self.memory_gb[list(columns)]
        calls = {arm: calls[list(rows)] for arm, calls in self.calls.items()}
        return Uses(memory, cells(self.active_b), cells(self.cost), cells(self.latency_ms), calls)


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredUses:
    """Mean tokens and latency of an answer by category and expert.

    Arrays have shape (n_categories, n_experts). The column of an expert is NaN in all rows if nothing was measured.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    input_tokens: Array
    output_tokens: Array
    latency_ms: Array

    @classmethod
    def of(
        cls,
        categories: Sequence[str],
        experts: Sequence[str],
        posterior: NDArray[np.floating],
        answers: Mapping[str, NDArray[np.floating]],
    ) -> MeasuredUses:
        """Average answers by category, shrunk towards the expert's mean over all its answers.

        `answers` maps measures to values of shape (n_prompts, n_experts), NaN where unknown. Prompt i belongs to
        category m with weight `posterior[i, m]`.
        """
        unknown = np.full((len(posterior), len(experts)), np.nan)
        tables = {
            name: tabulate_softly(categories, experts, posterior, answers.get(name, unknown)) for name in MEASURES
        }
        return cls(tuple(categories), tuple(experts), **{name: shrunk_mean(table) for name, table in tables.items()})

    @classmethod
    def nothing(cls) -> MeasuredUses:
        """Return the uses of no expert."""
        return cls((), (), *(np.empty((0, 0)) for _ in MEASURES))

    def over(self, categories: Sequence[str], experts: Sequence[str]) -> MeasuredUses:
        """Return the means over other names: an unknown category has the expert's mean, an unknown expert has NaN."""
        rows = [self.categories.index(name) if name in self.categories else len(self.categories) for name in categories]
        columns = [self.experts.index(name) if name in self.experts else len(self.experts) for name in experts]

        def cells(values: Array) -> Array:
            extended = np.full((len(self.categories) + 1, len(self.experts) + 1), np.nan)
            extended[:-1, :-1] = values
            if len(values):
                extended[-1, :-1] = values.mean(axis=0)
            return extended[np.ix_(rows, columns)]

        means = {name: cells(getattr(self, name)) for name in MEASURES}
        return MeasuredUses(tuple(categories), tuple(experts), **means)

    def has_tokens(self, expert: str) -> bool:
        """Return True if the tokens of the expert's answers were measured."""
        if expert not in self.experts:
            return False
        column = self.experts.index(expert)
        return bool(np.isfinite(self.input_tokens[:, column] + self.output_tokens[:, column]).all())

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any] | None, categories: Sequence[str], experts: Sequence[str]
    ) -> MeasuredUses | None:
        """Parse the result of `to_json`. Raises KeyError, TypeError or ValueError."""
        if data is None:
            return None
        means = {name: np.array(data[name], dtype=np.float64) for name in MEASURES}
        if wrong := [name for name, values in means.items() if values.shape != (len(categories), len(experts))]:
            raise ValueError(f"{wrong[0]} of shape {means[wrong[0]].shape}")
        return cls(tuple(categories), tuple(experts), **means)

    def to_json(self) -> dict[str, Any]:
        """Return nested lists by measure; null for NaN."""
        return {
            name: [[value if np.isfinite(value) else None for value in row] for row in getattr(self, name).tolist()]
            for name in MEASURES
        }


def shrunk_mean(table: ScoreTable) -> Array:
    """Return the means of positive values by cell, shrunk towards the mean of each column; shape of the table.

    Tokens and latencies vary in proportion to their mean, so a cell's logarithm is shrunk, as if the column's mean were
    a number of further values. That number is the variance within cells over the variance between cells, both of the
    logarithm (empirical Bayes, as `fit_pseudo_count`). A column without values is NaN.
    """
    known, count = np.maximum(np.nan_to_num(table.mean), 1.0), table.count  # at least one token or millisecond
    total = count.sum(axis=0)
    column = np.divide((count * known).sum(axis=0), total, out=np.full(total.shape, np.nan), where=total > 0)
    distance = np.where(count > 0, np.log(known) - np.log(column), 0.0)
    variance = np.nan_to_num(table.variance) / known**2  # of the logarithm, by the delta method
    strength = _pseudo_counts(count, distance, variance)
    return np.asarray(column * np.exp(distance * count / (count + strength)))


def _pseudo_counts(count: Array, distance: Array, variance: Array) -> Array:
    """Return the strength of shrinkage of each column by one-way analysis of variance, shape (n_columns,)."""
    total, cells = count.sum(axis=0), (count > 0).sum(axis=0)
    fits = (cells > 1) & (total > cells)
    size, free = np.where(fits, total, 2.0), np.where(fits, total - cells, 1.0)
    within = (count * variance).sum(axis=0) / free
    centre = (count * distance).sum(axis=0) / size
    explained = (count * (distance - centre) ** 2).sum(axis=0) / np.where(fits, cells - 1, 1)
    typical = (size - (count**2).sum(axis=0) / size) / np.where(fits, cells - 1, 1)
    between = (explained - within) / np.maximum(typical, 1e-12)
    strength = np.clip(within / np.maximum(between, 1e-12), 1e-3, 1e6)
    return np.asarray(np.where(fits, strength, PSEUDO_COUNT))


def declared_uses(
    registry: Registry,
    categories: Sequence[str],
    experts: Sequence[str] | None = None,
    *,
    measured: MeasuredUses | None = None,
) -> Uses:
    """Return the uses of `experts` in their order (default: all declared experts) in each category.

    Memory, active parameters and prices are the declared ones. Tokens and latency are the `measured` ones, where there
    are any.
    """
    specs = registry.experts if experts is None else [registry.expert(name) for name in experts]
    names = [spec.name for spec in specs]
    found = (measured or MeasuredUses.nothing()).over(categories, names)
    known = np.isfinite(found.input_tokens + found.output_tokens)
    input_price, output_price = np.array([(spec.prices.input, spec.prices.output) for spec in specs]).T
    cost = (
        np.where(known, found.input_tokens, ASSUMED_INPUT_TOKENS) * input_price
        + np.where(known, found.output_tokens, ASSUMED_OUTPUT_TOKENS) * output_price
    ) / 1000

    def array(values: list[float | None]) -> Array:
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    return Uses(
        memory_gb=array([0.0 if spec.runtime == "external" else spec.memory_gb for spec in specs]),
        active_b=np.tile(array([spec.active_parameters_b for spec in specs]), (len(categories), 1)),
        cost=cost,
        latency_ms=np.where(
            np.isfinite(found.latency_ms), found.latency_ms, array([spec.latency_ms for spec in specs])
        ),
    )
