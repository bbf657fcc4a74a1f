"""Resource uses of experts: memory, and by category the active parameters, cost and latency of a request.

`coe score` measures the tokens and the latency of every answer, and the routing log those of users' requests.
`MeasuredUses` holds their means by category and expert, from which `declared_uses` calculates costs at the declared
prices. Where nothing was measured, a request has the tokens of the other experts, or ASSUMED_INPUT_TOKENS and
ASSUMED_OUTPUT_TOKENS, and the declared latency. A plan's budget limits these uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from coe.planning.score_table import PSEUDO_COUNT, Array, Grid, Names, ScoreTable, align, tabulate_softly
from coe.registry import Registry

MIN_LOG_STRENGTH = 30.0
"""Records that a prior counts for at least, so that a few records with heavy-tailed lengths change little."""
ASSUMED_INPUT_TOKENS, ASSUMED_OUTPUT_TOKENS = 500, 300
"""Tokens of a request where those of no expert were measured."""
MEASURES = ("input_tokens", "output_tokens", "latency_ms")
"""Measures of an answer by `coe score`."""
LOGGED_MEASURES = (*MEASURES, "cached_tokens")
"""Measures of an answer in the routing log. `coe score` sends each probe once, so it measures no cached tokens."""


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

    def of_arms(self, known: Names, names: Names) -> Uses:
        """Return the uses of some arms over other categories, from those over the `known` names.

        A category that they lack has the mean of the others.
        """
        found = {name: getattr(self, name) for name in BY_CATEGORY}
        uses = {name: None if use is None else align(use, known, names, spread=True) for name, use in found.items()}
        calls = dict[str, Array]()
        for arm in (name for name in names[1] if name in self.calls):
            members = [str(column) for column in range(self.calls[arm].shape[1])]
            calls[arm] = align(self.calls[arm], (known[0], members), (names[0], members), spread=True)
        return Uses(**uses, calls=calls)

    def joined(self, arms: Uses, count: int) -> Uses:
        """Return the uses with the columns of `count` recipe arms behind them, which need no memory of their own."""
        joined = dict[str, Array | None]()
        for name in BY_CATEGORY:
            use, added = getattr(self, name), getattr(arms, name)
            if use is not None and added is None:
                added = np.full((len(use), count), np.nan)
            joined[name] = None if use is None else np.hstack((use, added))
        memory = None if self.memory_gb is None else np.append(self.memory_gb, np.zeros(count))
        return Uses(memory, **joined, calls={**self.calls, **arms.calls})


BY_CATEGORY = ("active_b", "cost", "latency_ms")
"""The uses that have a value for each category."""


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredUses(Grid):
    """Mean tokens and latency of an answer by category and expert.

    The column of an expert is NaN in all rows if nothing was measured. `cached_tokens` is a part of `input_tokens`.
    It is NaN if only scores, and no log, measured the expert.
    """

    input_tokens: Array
    output_tokens: Array
    latency_ms: Array
    cached_tokens: Array

    spreads: ClassVar[bool] = True

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
            name: tabulate_softly(categories, experts, posterior, answers.get(name, unknown))
            for name in LOGGED_MEASURES
        }
        return cls(tuple(categories), tuple(experts), **{name: shrunk_mean(table) for name, table in tables.items()})

    @classmethod
    def nothing(cls) -> MeasuredUses:
        """Return the uses of no expert."""
        return cls((), (), *(np.empty((0, 0)) for _ in LOGGED_MEASURES))

    def updated(self, logged: Mapping[str, ScoreTable]) -> MeasuredUses:
        """Return the means with those of the routing log, by measure of LOGGED_MEASURES over the same names.

        A cell of the log is shrunk towards the mean from scores times the expert's ratio of log to scores; the ratio is
        shrunk towards 1. A cell without scores is shrunk towards the expert's mean. The cached share of the input is
        that of all requests to the expert.
        """
        found = {name: shrunk_mean(logged[name], prior=getattr(self, name)) for name in MEASURES}
        tables = logged["cached_tokens"], logged["input_tokens"]
        cached, given = (np.nansum(table.mean * table.count, axis=0) for table in tables)
        share = np.divide(cached, given, out=np.full(given.shape, np.nan), where=given > 0)
        return MeasuredUses(self.categories, self.experts, **found, cached_tokens=share * found["input_tokens"])


def shrunk_mean(table: ScoreTable, *, prior: Array | None = None) -> Array:
    """Return the means of positive values by cell, shrunk towards the mean of each column; shape of the table.

    Tokens and latencies vary in proportion to their mean, so the logarithm of a cell is shrunk. The column's mean
    counts as a number of additional values (pseudo-count): the variance within cells divided by the variance between
    cells, both of the logarithm (empirical Bayes). A column without values is NaN.

    With a `prior` of the table's shape (NaN where unknown), cells are shrunk towards the prior times a factor of the
    column, by a strength of at least MIN_LOG_STRENGTH values. The factor of a column is shrunk towards that of all
    columns, which a column without values has, so that columns stay comparable.
    """
    known, count = np.maximum(np.nan_to_num(table.mean), 1.0), table.count  # at least one token or millisecond
    total = count.sum(axis=0)
    mean = np.divide((count * known).sum(axis=0), total, out=np.full(total.shape, np.nan), where=total > 0)
    variance = np.nan_to_num(table.variance) / known**2  # of the logarithm, by the delta method
    base, least = np.broadcast_to(mean, known.shape), 0.0
    if prior is not None:
        is_known = np.isfinite(prior).all(axis=0)
        scaled = np.maximum(np.where(is_known, prior, 1.0), 1.0)
        actual, expected = (count * known).sum(axis=0), (count * scaled).sum(axis=0)
        seen = is_known & (total > 0)
        size = float(total[seen].sum())
        usual = (max(float(actual[seen].sum()), 1.0) / max(float(expected[seen].sum()), 1.0)) ** (
            size / (size + MIN_LOG_STRENGTH)
        )
        ratio = np.divide(actual, expected, out=np.full_like(total, usual), where=seen)
        factor = usual * (ratio / usual) ** (total / (total + MIN_LOG_STRENGTH))
        base, least = np.where(is_known, scaled * factor, base), MIN_LOG_STRENGTH
    distance = np.where(count > 0, np.log(known) - np.log(base), 0.0)
    strength = np.maximum(_pseudo_counts(count, distance, variance), least)
    return np.asarray(base * np.exp(distance * count / (count + strength)))


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
    are any. An expert whose tokens are unknown has the mean tokens of the others, so that costs are comparable.
    """
    specs = registry.experts if experts is None else [registry.expert(name) for name in experts]
    names = [spec.name for spec in specs]
    found = (measured or MeasuredUses.nothing()).over(categories, names)
    known = np.isfinite(found.input_tokens + found.output_tokens)
    declared = [(spec.prices.input, spec.prices.output, spec.prices.cached) for spec in specs]
    input_price, output_price, cached_price = np.array(declared).T
    cached = np.where(known, np.nan_to_num(found.cached_tokens), 0.0)
    given, written = (
        np.where(known, tokens, np.where(known.any(axis=1), row_means, assumed)[:, None])
        for tokens, assumed in (
            (found.input_tokens, ASSUMED_INPUT_TOKENS),
            (found.output_tokens, ASSUMED_OUTPUT_TOKENS),
        )
        for row_means in [np.where(known, tokens, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)]
    )
    cost = ((given - cached) * input_price + cached * cached_price + written * output_price) / 1000

    def array(values: Sequence[float | None]) -> Array:
        return np.array(values, dtype=np.float64)  # NaN for None

    latency = array([spec.latency_ms for spec in specs])
    return Uses(
        memory_gb=array([0.0 if spec.runtime == "external" else spec.memory_gb for spec in specs]),
        active_b=np.tile(array([spec.active_parameters_b for spec in specs]), (len(categories), 1)),
        cost=cost,
        latency_ms=np.where(np.isfinite(found.latency_ms), found.latency_ms, latency),
    )
