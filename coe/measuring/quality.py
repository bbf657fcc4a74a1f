"""Reads quality data in a folder: prompts, each model's scores and uses on them, and the models' sizes.

The tables are those of `coe score` or others, in parquet, JSON Lines or CSV. The prompts that all models of the pool
have a score on are kept.

`Difference` is a mean paired difference with its standard error, where a prompt may be held out in several random
splits. The scores of one prompt in several splits depend on each other, so errors are clustered by prompt. A difference
below two standard errors is called level: the data do not show which of two methods is better.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from coe.errors import DataError
from coe.measuring.tables import Table, needed_table, optional_table
from coe.planning.uses import MEASURES


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """A pool of models scored on the same prompts.

    `scores` has shape (n_prompts, n_models), 0 to 1, NaN where missing; nothing is missing unless it was read `partly`.
    `active_b` (n_models,) is in billions of parameters, NaN where unknown. `left_out` counts prompts that lack a score
    of some model and are not among the prompts. `coarse` are the wider categories of prompts with a label, "" where a
    prompt has none, () where all have none. `unscored` names the requested models without usable scores. `prompt_ids`
    identify the prompts in the other files. `uses` maps each of MEASURES to values of the shape of `scores`, NaN where
    unknown; it is empty where nothing was measured. `measured_at` is the time of a model's oldest score (Unix seconds),
    where it is known.
    """

    benchmark: str
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    models: tuple[str, ...]
    scores: NDArray[np.float64]
    active_b: NDArray[np.float64]
    left_out: int
    coarse: tuple[str, ...] = ()
    unscored: tuple[str, ...] = ()
    prompt_ids: tuple[str, ...] = ()
    uses: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    measured_at: Mapping[str, float] = field(default_factory=dict)

    def grid(self, rows: Sequence[int], models: Sequence[str]) -> tuple[NDArray[np.int64], ...]:
        """The index of some prompts and models in arrays of the shape of `scores`."""
        return np.ix_(rows, [self.models.index(name) for name in models])

    def labels(self, rows: Sequence[int], categories: Sequence[str]) -> NDArray[np.int64]:
        """The categories of some prompts, by index."""
        number = {name: index for index, name in enumerate(categories)}
        return np.array([number[self.categories[row]] for row in rows], dtype=np.int64)

    @property
    def digest(self) -> str:
        """SHA-256 of the prompts in order."""
        return hashlib.sha256(orjson.dumps(self.prompts)).hexdigest()


def column_means(values: NDArray[np.float64], otherwise: ArrayLike) -> NDArray[np.float64]:
    """The mean of the finite `values` of each column, `otherwise` where a column has none."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    means = np.broadcast_to(np.asarray(otherwise, dtype=np.float64), count.shape).copy()
    return np.asarray(np.divide(total, count, out=means, where=count > 0))


def filled(values: NDArray[np.float64], otherwise: ArrayLike) -> NDArray[np.float64]:
    """`values`, where the mean of the column (`column_means`) replaces NaN and infinity."""
    return np.where(np.isfinite(values), values, column_means(values, otherwise))


def read_quality(
    folder: Path,
    *,
    benchmark: str | None = None,
    max_active_b: float | None = None,
    only: Sequence[str] = (),
    partly: bool = False,
    coarse: bool = False,
) -> Quality:
    """Read `prompts`, `scores`, `answers` and `models` (.parquet, .jsonl or .csv each) of one benchmark.

    `answers` and `models` may be absent. `max_active_b` keeps models of known size with at most that many billion
    active parameters, `only` those named. Models without scores are left out. While no prompt has scores
    of all models, the model with the fewest scores is left out too. With `partly`, prompts that lack scores are kept.
    The category of a prompt is its `label`, or its `category` where there is no label or with `coarse`. Raises
    DataError with the file, the problem and its count.
    """
    prompts = needed_table(folder, "prompts", needed=("prompt_id", "prompt"))
    scores = needed_table(folder, "scores", needed=("prompt_id", "model", "score"))
    name = _benchmark(prompts, benchmark)
    prompts, scores = prompts.where("benchmark", name), scores.where("benchmark", name)
    ids = prompts.texts("prompt_id")
    if twice := [one for one, times in Counter(ids).items() if times > 1]:
        raise DataError(f"{prompts.path}: {len(twice)} prompt_id occur more than once, {twice[0]!r} for one")
    models = optional_table(folder, "models", needed=("model", "active_b"), benchmark=name)
    sizes = zip(models.texts("model"), models.numbers("active_b"), strict=True) if models else ()
    active_b = {model: size for model, size in sizes if np.isfinite(size)}
    pool = _pool(folder, scores, only, active_b, max_active_b)
    matrix = _matrix(scores, "score", ids, pool)
    if not np.isfinite(matrix).any():
        raise DataError(f"{scores.path}: no score belongs to one of the prompts; compare the prompt_id of both files")
    while not np.isfinite(matrix).all(axis=1).any():
        if not only or len(pool) == 2:
            raise DataError(f"{scores.path}: no prompt has a score of every model; score more prompts")
        fewest = int(np.isfinite(matrix).sum(axis=0).argmin())
        pool, matrix = pool[:fewest] + pool[fewest + 1 :], np.delete(matrix, fewest, axis=1)
    whole = np.asarray(np.isfinite(matrix).all(axis=1)) | partly
    kept = np.flatnonzero(whole).tolist()
    texts, wider = prompts.texts("prompt"), prompts.texts("category")
    labels = [""] * len(ids) if coarse else prompts.texts("label")
    categories = [label or category for label, category in zip(labels, wider, strict=True)]
    if empty := categories.count(""):
        raise DataError(f"{prompts.path}: {empty} of {len(ids)} prompts have neither label nor category")
    times = sorted(zip(scores.numbers("time"), scores.texts("model"), strict=True), reverse=True)  # the oldest is last
    answers = optional_table(folder, "answers", needed=("prompt_id", "model"), benchmark=name)
    has_uses = answers is not None and set(MEASURES) <= set(answers.columns)
    return Quality(
        benchmark=name,
        prompts=tuple(texts[i] for i in kept),
        categories=tuple(categories[i] for i in kept),
        models=tuple(pool),
        scores=matrix[whole],
        active_b=np.array([active_b.get(model, np.nan) for model in pool]),
        left_out=len(whole) - len(kept),
        coarse=tuple(wider[i] for i in kept),
        unscored=tuple(model for model in only if model not in pool),
        prompt_ids=tuple(ids[i] for i in kept),
        measured_at={model: time for time, model in times if np.isfinite(time)},
        uses={use: _matrix(answers, use, ids, pool)[whole] for use in MEASURES} if answers and has_uses else {},
    )


def _benchmark(prompts: Table, wanted: str | None) -> str:
    names = sorted(set(prompts.texts("benchmark")))
    name = names[0] if wanted is None and len(names) == 1 else wanted
    if name in names:
        return str(name)
    found = "no benchmark was named" if wanted is None else f"there is no benchmark {wanted!r}"
    raise DataError(f"{prompts.path}: {found}; choose one of {', '.join(names)}")


def _pool(
    folder: Path,
    scores: Table,
    only: Sequence[str],
    active_b: Mapping[str, float],
    max_active_b: float | None,
) -> list[str]:
    """The models with scores, of those named by `only` if it names any, and within the limits of size."""
    scored = set(scores.texts("model"))
    absent = [model for model in only if model not in scored]
    if absent and len(only) - len(absent) < 2:
        raise DataError(
            f"{folder}: no scores of {', '.join(absent)}; run `coe score` for them (a plan takes two experts)"
        )
    models = named = sorted(scored & set(only or scored))
    if max_active_b is not None:
        models = [model for model in named if active_b.get(model, np.inf) <= max_active_b]
        if not active_b:
            raise DataError(f"{folder}: no model's size is known; add a table models with the columns model, active_b")
    if len(models) < 2:
        raise DataError(f"{scores.path}: {len(models)} model(s) left of {len(named)}; routing needs two")
    return models


def _matrix(scores: Table, name: str, ids: Sequence[str], models: Sequence[str]) -> NDArray[np.float64]:
    """Values of a column, scores from 0 to 1 and uses from 0, shape (n_prompts, n_models), NaN where missing; repeated
    ones are averaged."""
    values = np.array(scores.numbers(name))
    if (outside := np.flatnonzero((values < 0) | ((values > 1) & (name == "score")))).size:
        first = int(outside[0])
        raise DataError(
            f"{scores.path}: {outside.size} values of {name} are {'outside 0 to 1' if name == 'score' else 'below 0'}, "
            f"{values[first]:g} of {scores.texts('model')[first]} on prompt {scores.texts('prompt_id')[first]} for one"
        )
    cells = scores.cells(ids, models)
    rows, *places = cells[:, np.isfinite(values[cells[0]])]
    total, count = np.zeros((2, len(ids), len(models)))
    np.add.at(total, tuple(places), values[rows])
    np.add.at(count, tuple(places), 1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


LEVEL_ERRORS = 2.0
"""Standard errors below which a difference is level."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference and its standard error, NaN if unknown."""

    value: float
    error: float

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `level`; level too where the error is unknown."""
        if not abs(self.value) >= LEVEL_ERRORS * self.error or self.value == 0:
            return "level"
        return "better" if self.value > 0 else "worse"

    def to_json(self) -> dict[str, float | str | None]:
        error = self.error if np.isfinite(self.error) else None
        return {"difference": self.value, "standard_error": error, "verdict": self.verdict}


def clustered_mean(values: Sequence[NDArray[np.floating]], prompts: Sequence[NDArray[np.integer]]) -> Difference:
    """Return the mean of all values with its standard error, clustered by prompt.

    `values` and `prompts` have one array for each split, of shape (n_held_out,): a value, and the index of its prompt.
    """
    value, prompt = np.concatenate(values).astype(np.float64), np.concatenate(prompts)
    mean = float(value.mean())
    deviation = np.bincount(prompt, value - mean)
    clusters = len(np.unique(prompt))
    if clusters < 2:
        return Difference(mean, float("nan"))
    return Difference(mean, float(np.sqrt((deviation**2).sum() * clusters / (clusters - 1)) / len(value)))


def paired_difference(
    ours: Sequence[NDArray[np.floating]], theirs: Sequence[NDArray[np.floating]], prompts: Sequence[NDArray[np.integer]]
) -> Difference:
    """Return the mean of `ours` less `theirs` on the same prompts; shapes as in `clustered_mean`."""
    return clustered_mean([one - other for one, other in zip(ours, theirs, strict=True)], prompts)
