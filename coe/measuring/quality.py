"""Reads and writes quality data in a folder: prompts, each model's scores and uses on them, and the models' sizes.

`coe score` writes prompts.parquet, scores.parquet and models.csv. Reading takes parquet, JSON Lines or
CSV, and keeps the prompts that all models of the pool have a score on.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from coe.artifacts.atomic_files import replace_file
from coe.errors import DataError
from coe.measuring.probes.probes import Probe
from coe.measuring.tables import Table, find_table, needed_table, optional_table, read_table, write_parquet
from coe.planning.uses import MEASURES
from coe.registry import ExpertSpec


@dataclass(frozen=True, slots=True, eq=False)
class Quality:
    """A pool of models scored on the same prompts.

    `scores` has shape (n_prompts, n_models), 0 to 1, NaN where missing; nothing is missing unless it was read `partly`.
    `active_b` (n_models,) is in billions of parameters, NaN where unknown. `left_out` counts prompts that lack a score
    of some model and are not among the prompts. `coarse` are the wider categories of prompts with a label, "" where a
    prompt has none, () where all have none. `unscored` names the requested models without usable scores. `prompt_ids`
    identify the prompts in the other files. `uses` maps each of MEASURES to values of the shape of `scores`, NaN where
    unknown; it is empty where nothing was measured.
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

    @property
    def note(self) -> str:
        """The left-out prompts in a sentence; empty without any."""
        why = "since not every expert has a score there"
        return f"{self.left_out} prompts are left out, {why}" if self.left_out else ""

    def cells(self, table: Table) -> NDArray[np.int64]:
        """The row, prompt and model, by index, of each row of a table that belongs to both, shape (3, n_rows)."""
        return _cells(table, self.prompt_ids, self.models)

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


def _cells(table: Table, prompt_ids: Iterable[str], models: Sequence[str]) -> NDArray[np.int64]:
    number = {prompt_id: row for row, prompt_id in enumerate(prompt_ids)}
    column = {model: index for index, model in enumerate(models)}
    names = zip(table.texts("prompt_id"), table.texts("model"), strict=True)
    cells = [(row, number[p], column[m]) for row, (p, m) in enumerate(names) if p in number and m in column]
    return np.array(cells, dtype=np.int64).reshape(-1, 3).T


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
    open_only: bool = False,
    only: Sequence[str] = (),
    partly: bool = False,
    coarse: bool = False,
) -> Quality:
    """Read `prompts`, `scores`, `answers` and `models` (.parquet, .jsonl or .csv each) of one benchmark.

    `answers` and `models` may be absent. `max_active_b` keeps models with at most that many billion active parameters,
    `open_only` those of known size, `only` those named. Models without scores are left out. While no prompt has scores
    of all models, the model with the fewest scores is left out too. With `partly`, prompts that lack scores are kept.
    The category of a prompt is its `label`, or its `category` where there is no label or with `coarse`. Raises
    DataError with the file, the problem and its count.
    """
    prompts = needed_table(folder, "prompts", needed=("prompt_id", "prompt"))
    scores = needed_table(folder, "scores", needed=("prompt_id", "model", "score"))
    name = _benchmark(prompts, benchmark)
    if several := "benchmark" in prompts.columns:
        prompts, scores = prompts.where("benchmark", name), scores.where("benchmark", name)
    ids = prompts.texts("prompt_id")
    if twice := [one for one, times in Counter(ids).items() if times > 1]:
        raise DataError(f"{prompts.path}: {len(twice)} prompt_id occur more than once, {twice[0]!r} for one")
    active_b = _sizes(folder, name if several else None)
    pool = _pool(folder, scores, only, active_b, max_active_b, open_only)
    matrix = _matrix(scores, "score", ids, pool, most=1.0)
    if not np.isfinite(matrix).any():
        raise DataError(f"{scores.path}: no score belongs to one of the prompts; compare the prompt_id of both files")
    while not np.isfinite(matrix).all(axis=1).any():
        if not only or len(pool) == 2:
            raise DataError(f"{scores.path}: no prompt has a score of every model; score more prompts")
        fewest = int(np.isfinite(matrix).sum(axis=0).argmin())
        pool, matrix = pool[:fewest] + pool[fewest + 1 :], np.delete(matrix, fewest, axis=1)
    whole = np.asarray(np.isfinite(matrix).all(axis=1)) | partly
    kept = np.flatnonzero(whole).tolist()
    texts, categories, wider = prompts.texts("prompt"), _categories(prompts, coarse=coarse), prompts.texts("category")
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
        uses={use: _matrix(answers, use, ids, pool)[whole] for use in MEASURES} if answers and has_uses else {},
    )


def _benchmark(prompts: Table, wanted: str | None) -> str:
    names = sorted(set(prompts.texts("benchmark")))
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return str(wanted)
    found = "no benchmark was named" if wanted is None else f"there is no benchmark {wanted!r}"
    raise DataError(f"{prompts.path}: {found}; choose one of {', '.join(names)}")


def _categories(prompts: Table, *, coarse: bool) -> list[str]:
    labels, found = prompts.texts("label"), prompts.texts("category")
    if not coarse:
        found = [label or category for label, category in zip(labels, found, strict=True)]
    if empty := found.count(""):
        missing = "no category" if coarse else "neither label nor category"
        raise DataError(f"{prompts.path}: {empty} of {len(found)} prompts have {missing}")
    return found


def _sizes(folder: Path, benchmark: str | None) -> dict[str, float]:
    """Active parameters in billions of the models of known size; of all rows where no benchmark is given."""
    if (path := find_table(folder, "models")) is None:
        return {}
    table = read_table(path, needed=("model", "active_b"))
    if benchmark is not None:
        table = table.where("benchmark", benchmark)
    found = list(zip(table.texts("model"), table.numbers("active_b"), strict=True))
    if wrong := [f"{size:g} of {model}" for model, size in found if size < 0]:
        raise DataError(f"{path}: active_b is {wrong[0]}, and must not be below 0; leave it empty where it is unknown")
    return {model: size for model, size in found if np.isfinite(size)}


def _pool(
    folder: Path,
    scores: Table,
    only: Sequence[str],
    active_b: Mapping[str, float],
    max_active_b: float | None,
    open_only: bool,
) -> list[str]:
    """The models with scores, of those named by `only` if it names any, and within the limits of size."""
    scored = set(scores.texts("model"))
    absent = [model for model in only if model not in scored]
    if absent and len(only) - len(absent) < 2:
        raise DataError(
            f"{folder}: no scores of {', '.join(absent)}; run `coe score` for them (a plan takes two experts)"
        )
    models = named = sorted(scored & set(only or scored))
    if open_only or max_active_b is not None:
        largest = np.inf if max_active_b is None else max_active_b
        models = [model for model in named if model in active_b and active_b[model] <= largest]
        if not active_b:
            raise DataError(f"{folder}: no model's size is known; add models.csv with the columns model, active_b")
    if len(models) < 2:
        raise DataError(f"{scores.path}: {len(models)} model(s) left of {len(named)}; routing needs two")
    return models


def _matrix(
    scores: Table, name: str, ids: Sequence[str], models: Sequence[str], *, most: float = np.inf
) -> NDArray[np.float64]:
    """Values of a column from 0 to `most`, shape (n_prompts, n_models), NaN where missing; repeated ones are
    averaged."""
    values = np.array(scores.numbers(name))
    if (outside := np.flatnonzero((values < 0) | (values > most))).size:
        first = int(outside[0])
        limits, remedy = ("outside 0 to 1", "scale them") if most == 1.0 else ("below 0", "leave them empty")
        raise DataError(
            f"{scores.path}: {outside.size} {'scores' if name == 'score' else name} are {limits}, {values[first]:g} of "
            f"{scores.texts('model')[first]} on prompt {scores.texts('prompt_id')[first]} for one; {remedy}"
        )
    cells = _cells(scores, ids, models)
    rows, *places = cells[:, np.isfinite(values[cells[0]])]
    total, count = np.zeros((2, len(ids), len(models)))
    np.add.at(total, tuple(places), values[rows])
    np.add.at(count, tuple(places), 1)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


Score = tuple[str, str, float]
"""Prompt id, expert, score in [0, 1]."""


def write_quality(
    folder: Path, *, benchmark: str, probes: Sequence[Probe], scores: Iterable[Score], experts: Sequence[ExpertSpec]
) -> None:
    """Write the three files. `benchmark` names the probe set in each; missing scores have no row."""
    columns = dict.fromkeys(("benchmark", "prompt_id", "prompt", "category"), "string")
    prompts = (
        {"benchmark": benchmark, "prompt_id": one.prompt_id, "prompt": one.prompt, "category": one.category}
        for one in probes
    )
    write_parquet(folder / "prompts.parquet", columns, prompts)
    columns = dict.fromkeys(("benchmark", "prompt_id", "model"), "string") | {"score": "float32"}
    cells = ({"benchmark": benchmark, "prompt_id": one, "model": name, "score": score} for one, name, score in scores)
    write_parquet(folder / "scores.parquet", columns, cells)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("benchmark", "model", "active_b"))
    table.writerows((benchmark, one.name, one.active_parameters_b or "") for one in experts)
    replace_file(folder / "models.csv", text.getvalue().encode())
