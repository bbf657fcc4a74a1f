"""Compares routing with baselines, the best single model and the oracle on quality data.

CoE is trained and served as in production on random splits. The baselines are nearest neighbours and ridge regression
on embeddings, tuned on folds; the bounds are the best single model, the best map on the test part, and the oracle.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import routers
from coe.core import FAST_UNCERTAIN, GENERAL, Encoder, Prediction, Router
from coe.errors import DataError
from coe.measuring.quality import Quality, clustered_mean, paired_difference
from coe.measuring.recorded_answers import RecordedAnswers
from coe.planning.assignment import Assignment, apply_residual, expected_utility, residual_gain
from coe.planning.problem import Problem
from coe.planning.residual import Residual, fit_residual
from coe.planning.score_table import tabulate_partly
from coe.planning.solver import solve
from coe.recipes.fitting.benchmark import SplitComparison, compare, recipe_report
from coe.recipes.fitting.fit import Answers
from coe.routing.classifier import MIN_RESIDUAL_GAIN
from coe.routing.request_text import prompt_text
from routers.cascade import NETWORK, TOKENIZER
from routers.encoders import OnnxEncoder
from routers.examples import normalize_prompt

Floats = NDArray[np.floating]
KNN_GRID = (5, 10, 20, 50, 100, 200)
RIDGE_GRID = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TUNING_FOLDS = 4


def baselines(vectors: Floats, scores: Floats, targets: Floats, *, seed: int) -> dict[str, Floats]:
    """The scores (n_targets, n_models) that nearest neighbours and ridge regression predict for `targets`.

    They are trained on unit `vectors` with their `scores`, with the number of neighbours and the penalty whose choices
    score best on held-out folds.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold
    from sklearn.neighbors import KNeighborsRegressor

    def earned(fitted: Any, held: Floats, measured: Floats) -> float:
        return float(measured[np.arange(len(held)), fitted.predict(held).argmax(axis=1)].mean())

    smallest = len(vectors) * (TUNING_FOLDS - 1) // TUNING_FOLDS
    neighbours = [count for count in KNN_GRID if count <= smallest] or [smallest]
    rivals = {
        "knn": (KNeighborsRegressor(algorithm="brute"), {"n_neighbors": neighbours}),
        "ridge": (Ridge(), {"alpha": RIDGE_GRID}),
    }
    folds = KFold(TUNING_FOLDS, shuffle=True, random_state=seed)
    found = {}
    for name, (model, grid) in rivals.items():
        search = GridSearchCV(model, grid, scoring=earned, cv=folds)
        found[name] = search.fit(vectors.astype(np.float64), scores).predict(targets.astype(np.float64))
    return found


class SharedEncoder(OnnxEncoder):
    """The exported encoder of a folder, for several routers. It embeds every text once; not for unbounded input."""

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        super().__init__(folder / NETWORK, folder / TOKENIZER, threads=threads)
        self.memory: dict[bytes, NDArray[np.float32]] = {}
        self._folder = folder

    def write(self, out: Path) -> Self:
        """Copy its files into a folder, for `routers.build`."""
        out.mkdir(parents=True, exist_ok=True)
        for name in (NETWORK, TOKENIZER):
            shutil.copy(self._folder / name, out)
        return self

    def train(self, pairs: Sequence[tuple[str, str]], out: Path) -> Router:
        """Train a router with this encoder on (prompt, category) pairs."""
        routers.build([routers.Example(*pair) for pair in pairs], encoder=self.write, out=out)
        router = routers.load(out)
        router.encoder = self
        return router

    def _embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        key = np.array(ids, dtype=np.int32).tobytes()
        if (found := self.memory.get(key)) is None:
            found = self.memory[key] = super()._embed(ids)
        return found


SEEDS = (0, 1, 2, 3, 4)
TRAIN_SHARE = 0.7
MIN_TRAINING_PROMPTS = 8
"""Distinct training prompts that a label needs; a rarer one joins its category, or the general one."""

TrainRouter = Callable[[Sequence[tuple[str, str]], Path], Router]
"""Maps (prompt, category) pairs and an empty folder to a router as it is served."""
Progress = Callable[[str, float], None]


def benchmark(
    data: Quality,
    *,
    train_router: TrainRouter,
    encoder: Encoder,
    work: Path,
    seeds: Sequence[int] = SEEDS,
    recorded: RecordedAnswers | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and tune on the larger part of random 70/30 splits by `seeds`, and score on the other part.

    Routers are trained into folders of `work`. Returns a JSON-able report. It has each method's mean with its standard
    error, and its paired differences from the best single model and from CoE. Of CoE it also has the closed share of
    the gap between best single model and oracle. With the `recorded` answers it also compares single experts with
    recipes (`coe.recipes.fitting.benchmark`). Sizes are null where a model's size is not known. Raises DataError when
    the data cannot be split, or has fewer than two categories.
    """
    report = progress or (lambda stage, share: None)
    texts, splits = [normalize_prompt(prompt) for prompt in data.prompts], []
    if len(set(texts) - {""}) < 2 * MIN_TRAINING_PROMPTS:
        raise DataError(f"{data.benchmark}: fewer than {2 * MIN_TRAINING_PROMPTS} different prompts; score more")
    report("embed", 0.0)
    embeddings = encoder.features([prompt_text(prompt) for prompt in data.prompts])
    for number, seed in enumerate(seeds):
        report(f"split {number + 1} of {len(seeds)}", number / len(seeds))
        rows = np.random.default_rng(seed).permutation(len(data.prompts))
        parts = np.split(rows, [round(TRAIN_SHARE * len(rows))])
        folder = work / f"router-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        trained = _train(data, texts, parts[0], train_router, folder)
        splits.append(_run_split(data, embeddings, recorded, parts, trained, encoder=encoder, seed=seed))
    report("done", 1.0)
    found = benchmark_report(data, splits, seeds)
    compared = [split.recipes for split in splits if split.recipes is not None]
    return found | ({"recipes": recipe_report(compared, [split.prompts for split in splits])} if compared else {})


@dataclass(frozen=True, slots=True)
class SplitResult:
    """The result of one seed.

    `prompts` (n_held_out,) are the indices of the held-out prompts, and `score` has each method's scores on them, of
    the same shape. `size` is each method's mean active parameters in billions. `residual` tells whether one is used.
    `encoded` are the shares of prompts that the encoder reads, with the residual and without.
    """

    prompts: NDArray[np.int64]
    score: dict[str, NDArray[np.float64]]
    size: dict[str, float]
    residual: bool
    encoded: tuple[float, float]
    recipes: SplitComparison | None = None


def _run_split(
    data: Quality,
    embeddings: NDArray[np.float32],
    recorded: RecordedAnswers | None,
    parts: Sequence[NDArray[np.int64]],
    trained: tuple[Router, Assignment, NDArray[np.int64], NDArray[np.int64]],
    *,
    encoder: Encoder,
    seed: int,
) -> SplitResult:
    """The result of one seed: of what was `trained` on the first of the two `parts`, on the second.

    `embeddings` are those of all prompts by the `encoder`.
    """
    (train, test), (router, assignment, labelled, labels) = parts, trained
    routed = [prompt_text(data.prompts[i]) for i in test]
    categorized, encoded_without = _served(router, assignment, routed)
    posteriors = np.stack([one.probabilities for one in categorized])
    certain = np.eye(len(assignment.categories))
    residual = Residual.of(
        lambda some: (embeddings[labelled[some]], certain[labels[some]]),
        labels,
        data.scores[labelled],
        dimensions=encoder.dimensions,
        categories=assignment.categories,
        experts=assignment.experts,
        prompts=[(str(row), "") for row in labelled],
    )
    assignment = replace(assignment, residual=fit_residual(residual, assignment.price)[0])
    served, encoded = _served(router, assignment, routed)
    vectors = embeddings[:, : encoder.dimensions]
    value = {
        "coe": np.stack([expected_utility(assignment, one.probabilities, one.residual) for one in served]),
        "coe_categories": np.stack([expected_utility(assignment, posterior) for posterior in posteriors]),
    } | baselines(vectors[train], data.scores[train], vectors[test], seed=seed)
    choice = {name: expects.argmax(axis=1) for name, expects in value.items()}
    choice["coe_hard"] = assignment.quality[posteriors.argmax(axis=1)].argmax(axis=1)
    choice |= _bounds(data, train, test)
    scores, everyone = data.scores[test], np.arange(len(test))
    recipes = None
    if recorded is not None:
        training = _answers(data, recorded, labelled, labels, router)
        testing = _answers(data, recorded, test, np.zeros(len(test), dtype=np.int64), router)
        recipes = compare(training, testing, posteriors.astype(np.float64), quality=assignment.quality)
    return SplitResult(
        prompts=test,
        score={"random": scores.mean(axis=1)} | {name: scores[everyone, chosen] for name, chosen in choice.items()},
        size={"random": float(data.active_b.mean())} | {n: float(data.active_b[c].mean()) for n, c in choice.items()},
        residual=assignment.residual is not None,
        encoded=(encoded, encoded_without),
        recipes=recipes,
    )


def _served(router: Router, assignment: Assignment, texts: Sequence[str]) -> tuple[list[Prediction], float]:
    """The predictions for texts as in service, and the share of texts that the encoder reads.

    It reads those of which the fast heads are unsure, and those for which the plan's residual may change the choice.
    """
    served = list(map(router.predict_fast, texts))
    gain = residual_gain(assignment, range(len(assignment.experts)))
    is_read = [one.stage == FAST_UNCERTAIN or float(one.probabilities @ gain) > MIN_RESIDUAL_GAIN for one in served]
    rows = np.flatnonzero(is_read).tolist()
    if rows:
        refined = router.predict([texts[row] for row in rows], encode=assignment.residual is not None)
        for row, prediction in zip(rows, refined, strict=True):
            served[row] = apply_residual(assignment, prediction)
    return served, float(np.mean(is_read))


def _answers(
    data: Quality, recorded: RecordedAnswers, rows: NDArray[np.int64], labels: NDArray[np.int64], router: Router
) -> Answers:
    """The recorded answers to some prompts. Where a model's size is unknown, nothing costs anything."""
    tokens = recorded.tokens[rows]
    costs = data.active_b * tokens / 1000.0 if np.isfinite(data.active_b).all() else np.zeros_like(tokens)
    return Answers(
        data.models, recorded.classes[rows], data.scores[rows], costs, tokens, labels, len(router.categories)
    )


def _train(
    data: Quality,
    texts: Sequence[str],
    train: NDArray[np.int64],
    train_router: TrainRouter,
    folder: Path,
) -> tuple[Router, Assignment, NDArray[np.int64], NDArray[np.int64]]:
    """A router and an assignment for the training part, the prompts that they were measured on, and their categories.

    They are made as by `coe train` and `coe plan`.
    """
    coarse = [data.coarse[i] for i in train if data.coarse]
    labels = _merge_rare_labels([texts[i] for i in train], [data.categories[i] for i in train], coarse)
    if len(set(labels) - {""}) < 2:
        message = (
            f"{data.benchmark}: fewer than two categories have {MIN_TRAINING_PROMPTS} different prompts to learn from"
        )
        raise DataError(f"{message}; score more prompts, or sort them into fewer categories")
    pairs = [(data.prompts[i], label) for i, label in zip(train, labels, strict=True)]
    router = train_router([pair for pair in pairs if pair[1]], folder)
    there = [number for number, label in enumerate(labels) if label in router.categories]
    known, scores = [labels[number] for number in there], data.scores[train[there]]
    member = np.array(known)[:, np.newaxis] == np.array(router.categories)
    table = tabulate_partly(router.categories, data.models, member, scores)
    assignment = solve(Problem.of(table, quality=table.posterior().mean))
    return router, assignment, train[there], np.array([router.categories.index(label) for label in known])


def _merge_rare_labels(texts: Sequence[str], labels: Sequence[str], coarse: Sequence[str]) -> list[str]:
    """Labels with rare ones merged into their coarse category, then into the general one, and "" where even that is
    rare."""
    found, general = list(labels), [GENERAL] * len(labels)
    for wider in ([name or GENERAL for name in coarse] or general, general, [""] * len(labels)):
        count = Counter(label for _, label in {pair for pair in zip(texts, found, strict=True) if pair[0]})
        found = [
            label if count[label] >= MIN_TRAINING_PROMPTS else other for label, other in zip(found, wider, strict=True)
        ]
    return found


def _bounds(data: Quality, train: NDArray[np.int64], test: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Choices of the best single model of the training part, and of two that use the test scores.

    These are the best model of each true category, and the best (then smallest) model of each prompt.
    """
    scores = data.scores[test]
    names, rows = np.unique([data.categories[i] for i in test], return_inverse=True)
    total = np.zeros((len(names), len(data.models)))
    np.add.at(total, rows, scores)
    smallest_first = np.argsort(data.active_b, kind="stable")  # unknown sizes (NaN) go last
    return {
        "best_single": np.full(len(test), int(data.scores[train].mean(axis=0).argmax())),
        "class_map_on_test": total.argmax(axis=1)[rows],
        "oracle": smallest_first[scores[:, smallest_first].argmax(axis=1)],
    }


METHODS = ("random", "best_single", "knn", "ridge", "coe_hard", "coe_categories", "coe", "class_map_on_test", "oracle")
"""`coe` is what is served. `coe_categories` is the same without the residual, `coe_hard` by the likeliest category."""


RIVALS = ("best_single", "coe")
"""Methods that every method is compared with, on the same prompts."""


def benchmark_report(data: Quality, splits: Sequence[SplitResult], seeds: Sequence[int]) -> dict[str, Any]:
    """The JSON-able report of the splits by `seeds`, without the comparison of recipes.

    It has the mean, the standard error and the size of each method, and its paired differences from RIVALS.
    """
    prompts, methods = [one.prompts for one in splits], dict[str, dict[str, Any]]()
    for name in METHODS:
        scores, size = [one.score[name] for one in splits], float(np.mean([one.size[name] for one in splits]))
        mean = clustered_mean(scores, prompts)
        methods[name] = {
            "mean": mean.value,
            "standard_error": mean.error if np.isfinite(mean.error) else None,
            "mean_active_b": size if np.isfinite(size) else None,
            "against": {
                rival: paired_difference(scores, [one.score[rival] for one in splits], prompts).to_json()
                for rival in RIVALS
                if rival != name
            },
        }
    best, coe, oracle = (methods[name]["mean"] for name in ("best_single", "coe", "oracle"))
    return {
        "benchmark": data.benchmark,
        "categories": len(set(data.categories)),
        "prompts": len(data.prompts),
        "left_out": data.left_out,
        "models": len(data.models),
        "splits": len(splits),
        "seeds": list(seeds),
        "methods": methods,
        "gap_closed": (coe - best) / (oracle - best) if oracle > best else None,
        "residual": {
            "used": sum(split.residual for split in splits),
            "encoded": float(np.mean([split.encoded[0] for split in splits])),
            "encoded_without": float(np.mean([split.encoded[1] for split in splits])),
        },
    }
