"""Quality by category and expert from single scores: means, counts, and shrinkage.

`Grid` is the base of arrays over categories and experts, found by name, and their form as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator

from coe.trials.posterior import Posterior, posterior_of


def _numbers(values: Any) -> NDArray[np.float64]:
    if not isinstance(values, list | np.ndarray):
        raise ValueError("not an array")
    return np.array(values, dtype=np.float64) if len(values) else np.zeros((0, 0))


def _booleans(values: Any) -> NDArray[np.bool_]:
    return _numbers(values) > 0


Array = Annotated[NDArray[np.float64], PlainValidator(_numbers), PlainSerializer(np.ndarray.tolist)]
Mask = Annotated[NDArray[np.bool_], PlainValidator(_booleans), PlainSerializer(np.ndarray.tolist)]
"""Arrays that are nested lists in JSON. A number that is not finite is written as null, which is read as NaN."""
Names = tuple[Sequence[str], Sequence[str]]
"""Names of categories and of experts."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Base of frozen values whose further fields are arrays of shape (n_categories, n_experts).

    In `over`, the cells of names that the grid lacks are NaN, or as `missing` says by field; with `spreads`, a category
    that it lacks has the mean of the others.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]

    missing: ClassVar[Mapping[str, float]] = {}
    spreads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        shape = len(self.categories), len(self.experts)
        for name, values in self.arrays().items():
            if values.shape != shape:
                raise ValueError(f"{name}: shape {values.shape}, not {shape}")

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays by field, without those that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)[2:]}
        return {name: array for name, array in values.items() if array is not None}

    def over(self, categories: Sequence[str], experts: Sequence[str]) -> Self:
        """Return the grid over other names, in their order."""
        known, names = (self.categories, self.experts), (tuple(categories), tuple(experts))
        found = {
            name: align(values, known, names, missing=self.missing.get(name, np.nan), spread=self.spreads)
            for name, values in self.arrays().items()
        }
        return replace(self, categories=names[0], experts=names[1], **found)


def select(
    values: NDArray[np.float64], known: Sequence[str], names: Sequence[str], *, missing: float = np.nan
) -> NDArray[np.float64]:
    """Map the last axis of an array from the `known` names to other `names`; values of unknown ones are `missing`."""
    place = {name: index for index, name in enumerate(known)}
    spare = np.full((*values.shape[:-1], 1), missing, dtype=values.dtype)
    return np.concatenate((values, spare), axis=-1)[..., [place.get(name, len(place)) for name in names]]


def align(
    values: NDArray[np.float64], known: Names, names: Names, *, missing: float = np.nan, spread: bool = False
) -> NDArray[np.float64]:
    """Map a table over the `known` names of categories and experts to other `names`; unknown cells are `missing`.

    With `spread`, the values of an unknown category are the means over the categories.
    """
    rows = select(values.T, known[0], names[0], missing=missing).T
    if spread and len(values):
        rows[[name not in known[0] for name in names[0]]] = values.mean(axis=0)
    return select(rows, known[1], names[1], missing=missing)


PSEUDO_COUNT = 10.0
"""Default strength of shrinkage towards the additive estimate, in prompts."""
BACKFITTING_ITERATIONS = 30
PROMPT_SHRINKAGE = 0.25
"""Variance of a score within its prompt and expert over the variance between prompts, where scores are filled in."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable(Grid):
    """Measured scores by category and expert.

    `mean` is the mean score (0 to 1, NaN without scores), and `variance` the variance of single scores in the cell.
    `count` is the number of scores, or the sum of weights if prompts belong to several categories. `noise` is the
    variance of a score in comparisons of experts, over that of a score alone (None for 1): on the same prompts it is
    smaller.
    """

    mean: Array
    variance: Array
    count: Array
    noise: Array | None = None

    missing: ClassVar[Mapping[str, float]] = {"count": 0.0, "noise": 1.0}

    @classmethod
    def of_sums(
        cls, categories: Sequence[str], experts: Sequence[str], count: Array, total: Array, squares: Array
    ) -> ScoreTable:
        """Return the table of sums over scores: of their weights, and of the weighted scores and their squares."""
        nothing = np.full(count.shape, np.nan)
        mean = np.divide(total, count, out=nothing.copy(), where=count > 0)
        variance = np.divide(squares, count, out=nothing, where=count > 0) - mean**2
        return cls(tuple(categories), tuple(experts), mean, np.maximum(variance, 0.0), count)

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

    def posterior(self) -> Posterior:
        """Return the posterior of the qualities."""
        return posterior_of(self.mean, self.variance, self.count, 1.0 if self.noise is None else self.noise)

    def error(self, *, pseudo_count: float = PSEUDO_COUNT) -> NDArray[np.float64]:
        """Return the standard errors of `shrunk`. A cell's variance is shrunk towards that of all scores."""
        seen = self.count * np.nan_to_num(self.variance)
        common = float(seen.sum() / max(self.count.sum(), 1e-12))
        total = self.count + pseudo_count
        return np.asarray(np.sqrt((seen + pseudo_count * common) / total / total))


def tabulate_softly(
    categories: Sequence[str], experts: Sequence[str], posterior: NDArray[np.floating], scores: NDArray[np.floating]
) -> ScoreTable:
    """Build the table from soft labels: prompt i belongs to category m with weight `posterior[i, m]`.

    `posterior` has shape (n_prompts, n_categories), `scores` (n_prompts, n_experts) with NaN where a score is missing.
    """
    weights = np.asarray(posterior, dtype=np.float64).T
    known = np.isfinite(scores)
    values = np.where(known, scores, 0.0)
    return ScoreTable.of_sums(categories, experts, weights @ known, weights @ values, weights @ values**2)


def tabulate_partly(
    categories: Sequence[str], experts: Sequence[str], member: NDArray[np.float64], scores: NDArray[np.floating]
) -> ScoreTable:
    """Build the table from prompts that only a part of the experts was scored on.

    `member`, shape (n_prompts, n_categories), has a 1 for the category of each prompt. An expert's mean is that over
    all prompts of the category, its missing scores filled in, so that one that got the easy prompts gains nothing.
    Counts and variances are those of the measured scores. Of complete scores, they are those of `tabulate_softly`.
    """
    table = replace(tabulate_softly(categories, experts, member, scores), noise=_noise_in_comparisons(member, scores))
    if np.isfinite(scores).all():
        return table
    mean = table.mean.copy()
    for row in range(len(table.categories)):
        known = np.isfinite(cell := scores[member[:, row] > 0])
        cell, known = cell[known.any(axis=1)], known[known.any(axis=1)]
        if len(cell):
            prompt, expert = _effects(cell, known, shrinkage=PROMPT_SHRINKAGE)
            filled = np.where(known, cell, prompt[:, None] + expert).mean(axis=0)
            mean[row] = np.where(table.count[row] > 0, np.clip(filled, 0.0, 1.0), np.nan)
    return replace(table, mean=mean)


PRIOR_FREEDOM = 30.0
"""Scores that are assumed to show no difficulty of prompts, beside the measured ones."""


def _noise_in_comparisons(member: NDArray[np.float64], scores: NDArray[np.floating]) -> Array:
    """Return the `noise` of a table of these scores.

    A hard prompt lowers the scores of all experts, which says nothing about which one is better. The more experts
    answered a prompt, the better is its difficulty known.
    """
    is_scored, whole, rest, free, paired_free = np.isfinite(scores), 0.0, 0.0, 0.0, 0.0
    for row in range(member.shape[1]):
        cell = scores[(member[:, row] > 0) & (is_scored.sum(axis=1) > 1)]
        known = np.isfinite(cell)
        prompt, expert = _effects(cell, known, shrinkage=0.0)
        mean = np.where(known, cell, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        whole += float((np.where(known, cell - mean, 0.0) ** 2).sum())
        rest += float((np.where(known, cell - prompt[:, None] - expert, 0.0) ** 2).sum())
        within = float(known.sum() - known.any(axis=0).sum())
        free, paired_free = free + within, paired_free + max(within - len(cell) + 1, 0.0)
    if free <= 0 or whole <= 0:
        return np.ones((member.shape[1], scores.shape[1]))
    alone = whole / free
    paired = float(np.clip((rest + PRIOR_FREEDOM * alone) / (paired_free + PRIOR_FREEDOM) / alone, 0.2, 1.0))
    others = is_scored.sum(axis=1, keepdims=True) - is_scored
    noise = paired + (1 - paired) * paired / (paired + others * (1 - paired))
    count = member.T.astype(np.float64) @ is_scored
    return np.asarray(np.divide(member.T @ (is_scored * noise), count, out=np.ones(count.shape), where=count > 0))


def _effects(scores: Array, known: NDArray[np.bool_], *, shrinkage: float) -> tuple[Array, Array]:
    """Return an effect of each prompt and one of each expert, whose sum approximates the `known` scores.

    The effects of prompts are around 0 and shrunk towards it, as if each prompt had `shrinkage` more scores of 0. One
    pass is exact for complete scores.
    """
    prompt, expert = np.zeros(len(scores)), np.zeros(scores.shape[1])
    values, columns = np.where(known, scores, 0.0), np.maximum(known.sum(axis=0), 1)
    for _ in range(1 if known.all() and not shrinkage else BACKFITTING_ITERATIONS):
        expert = (values - known * prompt[:, None]).sum(axis=0) / columns
        prompt = (values - known * expert).sum(axis=1) / (known.sum(axis=1) + shrinkage)
    return prompt, expert
