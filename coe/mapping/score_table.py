"""Quality by category and expert from single scores: means, counts, shrinkage and lower confidence bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PSEUDO_COUNT = 10.0
"""Default strength of shrinkage towards the additive estimate, in prompts; `fit_pseudo_count` fits it to scores."""
BACKFITTING_ITERATIONS = 30


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """Measured scores. Every array has shape (n_categories, n_experts).

    `mean` is the mean score (0 to 1, NaN without scores), `variance` the variance of single scores in the cell, and
    `count` the number of scores, or the sum of weights if prompts belong to several categories.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    count: NDArray[np.float64]

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """The (category, expert) pairs without scores, whose quality is only an estimate."""
        return tuple((self.categories[row], self.experts[column]) for row, column in np.argwhere(self.count == 0))

    def over(self, categories: Sequence[str], experts: Sequence[str]) -> ScoreTable:
        """Return the table over other names; those that it lacks have no scores."""
        known, names = (self.categories, self.experts), (tuple(categories), tuple(experts))
        mean, variance = (align(table, known, names, missing=np.nan) for table in (self.mean, self.variance))
        return ScoreTable(*names, mean, variance, align(self.count, known, names, missing=0.0))

    def additive(self) -> NDArray[np.float64]:
        """Return the additive estimate: an effect of the category plus one of the expert, fitted by backfitting."""
        known = np.nan_to_num(self.mean)
        rows, columns = self.count.sum(axis=1), self.count.sum(axis=0)
        level = float((self.count * known).sum() / max(self.count.sum(), 1e-12))
        category, expert = np.zeros(len(self.categories)), np.zeros(len(self.experts))
        for _ in range(BACKFITTING_ITERATIONS):
            rest = self.count * (known - level - category[:, None])
            expert = np.divide(rest.sum(axis=0), columns, out=np.zeros_like(columns), where=columns > 0)
            rest = self.count * (known - level - expert[None, :])
            category = np.divide(rest.sum(axis=1), rows, out=np.zeros_like(rows), where=rows > 0)
        return np.asarray(np.clip(level + category[:, None] + expert[None, :], 0.0, 1.0))

    def shrunk(self, *, pseudo_count: float = PSEUDO_COUNT) -> NDArray[np.float64]:
        """Return the means, shrunk towards the additive estimate as if that were `pseudo_count` more scores.

        No cell is NaN. A few scores in a category cannot rank a weak expert above one that is strong everywhere.
        """
        seen = self.count * np.nan_to_num(self.mean)
        return np.asarray((seen + pseudo_count * self.additive()) / (self.count + pseudo_count))

    def lower(self, *, deviations: float, pseudo_count: float = PSEUDO_COUNT) -> NDArray[np.float64]:
        """Return lower confidence bounds: `shrunk` minus `deviations` standard errors, at least 0."""
        bound = self.shrunk(pseudo_count=pseudo_count) - deviations * self.error(pseudo_count=pseudo_count)
        return np.asarray(np.maximum(bound, 0.0))

    def error(self, *, pseudo_count: float = PSEUDO_COUNT) -> NDArray[np.float64]:
        """Return the standard errors of `shrunk`. A cell's variance is shrunk towards that of all scores."""
        seen = self.count * np.nan_to_num(self.variance)
        common = float(seen.sum() / max(self.count.sum(), 1e-12))
        total = self.count + pseudo_count
        return np.asarray(np.sqrt((seen + pseudo_count * common) / total / total))


def align(
    table: NDArray[np.float64],
    known: tuple[Sequence[str], Sequence[str]],
    names: tuple[Sequence[str], Sequence[str]],
    *,
    missing: float,
) -> NDArray[np.float64]:
    """Map a table over the `known` categories and experts to other `names`; cells that it lacks are `missing`."""
    rows, columns = (
        [old.index(name) if name in old else len(old) for name in new] for old, new in zip(known, names, strict=True)
    )
    return np.pad(table, ((0, 1), (0, 1)), constant_values=missing)[np.ix_(rows, columns)]


def tabulate_prompts(
    labels: Sequence[str],
    experts: Sequence[str],
    scores: NDArray[np.floating],
    *,
    categories: Sequence[str] | None = None,
) -> ScoreTable:
    """Build the table from prompts: prompt i has the category `labels[i]` and the scores `scores[i]`.

    `scores` has shape (n_prompts, n_experts), NaN where a score is missing. `categories` sets the order and must hold
    every label; by default the labels are sorted.
    """
    names = sorted(set(labels)) if categories is None else list(categories)
    row = {name: number for number, name in enumerate(names)}
    return tabulate_softly(names, experts, np.eye(len(names))[[row[label] for label in labels]], scores)


def tabulate_softly(
    categories: Sequence[str],
    experts: Sequence[str],
    posterior: NDArray[np.floating],
    scores: NDArray[np.floating],
) -> ScoreTable:
    """Build the table from soft labels: prompt i belongs to category m with weight `posterior[i, m]`.

    `posterior` has shape (n_prompts, n_categories), `scores` (n_prompts, n_experts) with NaN where a score is missing.
    """
    weights = np.asarray(posterior, dtype=np.float64).T
    known = np.isfinite(scores)
    values = np.where(known, scores, 0.0)
    count, missing = weights @ known, np.full((len(categories), len(experts)), np.nan)
    mean = np.divide(weights @ values, count, out=missing.copy(), where=count > 0)
    variance = np.divide(weights @ values**2, count, out=missing, where=count > 0) - mean**2
    return ScoreTable(tuple(categories), tuple(experts), mean, np.maximum(variance, 0.0), count)


def fit_pseudo_count(categories: Sequence[str], scores: NDArray[np.floating]) -> float:
    """Fit the strength of shrinkage: the variance of one score within a cell over the variance between cells.

    Empirical Bayes by moments (one-way analysis of variance) on scores of shape (n_prompts, n_experts). Each prompt is
    centred first, because its difficulty does not affect the choice of expert. If categories do not distinguish
    experts, the result is very large, so that every category gets the best expert overall.
    """
    names, rows = np.unique(np.asarray(categories, dtype=object).astype(str), return_inverse=True)
    count = np.bincount(rows).astype(np.float64)
    if len(names) < 2 or len(rows) <= len(names):
        return PSEUDO_COUNT
    centred = scores - scores.mean(axis=1, keepdims=True)
    centred = centred - centred.mean(axis=0)
    total = np.zeros((len(names), scores.shape[1]))
    np.add.at(total, rows, centred)
    explained = float((total**2 / count[:, None]).sum())
    within = (float((centred**2).sum()) - explained) / (len(rows) - len(names))
    typical = (count.sum() - (count**2).sum() / count.sum()) / (len(names) - 1)
    between = (explained / (len(names) - 1) - within) / typical
    return float(np.clip(within / max(between, 1e-12), 1e-3, 1e6))
