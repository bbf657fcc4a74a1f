"""Compares routing with baselines, the best single model and the oracle on quality data.

CoE is trained and served as in production on random splits. The baselines are nearest neighbours and ridge regression
on embeddings, tuned on folds; the bounds are the best single model, the best map on the test part, and the oracle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.core import FAST_UNCERTAIN, GENERAL, Encoder, Prediction, Router
from coe.errors import DataError
from coe.measuring.benchmark.report import SplitResult, benchmark_report, trace
from coe.measuring.quality import Quality
from coe.measuring.recorded_answers import RecordedAnswers
from coe.planning.assignment import Assignment, apply_residual, expected_utility, residual_gain
from coe.planning.problem import Problem
from coe.planning.residual import Residual, fit_residual
from coe.planning.score_table import fit_pseudo_count, tabulate_softly
from coe.planning.solver import solve
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.benchmark import compare, recipe_report
from coe.routing.classifier import MIN_RESIDUAL_GAIN
from coe.routing.request_text import prompt_text

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


SEEDS = (0, 1, 2, 3, 4)
TRAIN_SHARE = 0.7
MIN_TRAINING_PROMPTS = 8
"""Distinct training prompts that a label needs; a rarer one joins its category, or the general one."""

TrainRouter = Callable[[Sequence[tuple[str, str]], Path], Router]
"""Maps (prompt, category) pairs and an empty folder to a router as it is served."""
PrepareText = Callable[[str], str]
"""Returns the part of a prompt that a router is trained on, may be empty; prompts with equal parts are one."""
Progress = Callable[[str, float], None]


def benchmark(
    data: Quality,
    *,
    train_router: TrainRouter,
    prepare: PrepareText,
    encoder: Encoder,
    work: Path,
    seeds: Sequence[int] = SEEDS,
    recorded: RecordedAnswers | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and tune on the larger part of random 70/30 splits by `seeds`, and score on the other part.

    Routers are trained into folders of `work`. Returns a JSON-able report. It has each method's mean with its standard
    error, and its paired differences from the best single model and from CoE. Of CoE it also has the closed share of
    the gap between best single model and oracle, and the frontier. With the `recorded` answers it also compares single
    experts with recipes (`coe.recipes.fitting.benchmark`). Sizes and frontier are null or empty where a model's size is
    not known. Raises DataError when the data cannot be split, or has fewer than two categories.
    """
    report = progress or (lambda stage, share: None)
    texts, splits = [prepare(prompt) for prompt in data.prompts], []
    if len(set(texts) - {""}) < 2 * MIN_TRAINING_PROMPTS:
        raise DataError(f"{data.benchmark}: fewer than {2 * MIN_TRAINING_PROMPTS} different prompts; score more")
    report("embed", 0.0)
    embeddings = encoder.features([prompt_text(prompt) for prompt in data.prompts])
    for number, seed in enumerate(seeds):
        report(f"split {number + 1} of {len(seeds)}", number / len(seeds))
        rows = np.random.default_rng(seed).permutation(len(data.prompts))
        parts = np.split(rows, [round(TRAIN_SHARE * len(rows))])
        folder = work / f"router-{data.digest[:16]}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        trained = _train(data, texts, parts[0], train_router, folder)
        splits.append(_run_split(data, embeddings, recorded, parts, trained, encoder=encoder, seed=seed))
    report("done", 1.0)
    found = benchmark_report(data, splits, seeds)
    compared = [split.recipes for split in splits if split.recipes is not None]
    return found | ({"recipes": recipe_report(compared, [split.prompts for split in splits])} if compared else {})


def _run_split(
    data: Quality,
    embeddings: NDArray[np.float32],
    recorded: RecordedAnswers | None,
    parts: Sequence[NDArray[np.int64]],
    trained: tuple[Router, Assignment, dict[int, int]],
    *,
    encoder: Encoder,
    seed: int,
) -> SplitResult:
    """The result of one seed: of what was `trained` on the first of the two `parts`, on the second.

    `embeddings` are those of all prompts by the `encoder`.
    """
    (train, test), (router, assignment, labelled) = parts, trained
    routed = [prompt_text(data.prompts[i]) for i in test]
    categorized, encoded_without = _served(router, assignment, routed)
    posteriors = np.stack([one.probabilities for one in categorized])
    assignment = _with_residual(data, assignment, labelled, embeddings, encoder)
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
        rows, categories = np.array(list(labelled)), np.array(list(labelled.values()))
        training = _answers(data, recorded, rows, categories, router)
        testing = _answers(data, recorded, test, np.zeros(len(test), dtype=np.int64), router)
        recipes = compare(training, testing, posteriors.astype(np.float64), quality=assignment.quality)
    return SplitResult(
        prompts=test,
        score={"random": scores.mean(axis=1)} | {name: scores[everyone, chosen] for name, chosen in choice.items()},
        size={"random": float(data.active_b.mean())} | {n: float(data.active_b[c].mean()) for n, c in choice.items()},
        frontier=trace(value["coe"], scores, data.active_b) if np.isfinite(data.active_b).all() else None,
        residual=assignment.residual is not None,
        encoded=(encoded, encoded_without),
        recipes=recipes,
    )


def _served(router: Router, assignment: Assignment, texts: Sequence[str]) -> tuple[list[Prediction], float]:
    """The predictions for texts as in service, and the share of texts that the encoder reads.

    It reads those of which the fast heads are unsure, and those for which the plan's residual may change the choice.
    """
    served = [one for text in texts if (one := router.predict_fast(text, force=True)) is not None]
    gain = residual_gain(assignment, range(len(assignment.experts)))
    is_read = [one.stage == FAST_UNCERTAIN or float(one.probabilities @ gain) > MIN_RESIDUAL_GAIN for one in served]
    rows = np.flatnonzero(is_read).tolist()
    if rows:
        refined = router.predict([texts[row] for row in rows], encode=assignment.residual is not None)
        for row, prediction in zip(rows, refined, strict=True):
            served[row] = apply_residual(assignment, prediction)
    return served, float(np.mean(is_read))


def _with_residual(
    data: Quality,
    assignment: Assignment,
    labelled: Mapping[int, int],
    embeddings: NDArray[np.float32],
    encoder: Encoder,
) -> Assignment:
    """The assignment with the residual of the `labelled` training prompts, whose category is given by index."""
    rows, labels = np.array(list(labelled)), np.array(list(labelled.values()))
    certain = np.eye(len(assignment.categories))
    measured = Residual.of(
        lambda some: (embeddings[rows[some]], certain[labels[some]]),
        labels,
        data.scores[rows],
        dimensions=encoder.dimensions,
        categories=assignment.categories,
        experts=assignment.experts,
        prompts=[(str(row), "") for row in rows],
    )
    return replace(assignment, residual=fit_residual(measured, assignment.price)[0])


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
) -> tuple[Router, Assignment, dict[int, int]]:
    """A router and an assignment for the training part, and the category of each prompt that they were measured on.

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
    member = np.array(known)[:, None] == np.array(router.categories)
    table = tabulate_softly(router.categories, data.models, member, scores)
    hyperparameter = fit_pseudo_count(known, scores)
    rows = {int(train[number]): router.categories.index(labels[number]) for number in there}
    return router, solve(Problem.of(table, quality=table.shrunk(pseudo_count=hyperparameter))), rows


def _merge_rare_labels(texts: Sequence[str], labels: Sequence[str], coarse: Sequence[str]) -> list[str]:
    """Labels with rare ones merged into their coarse category, then into the general one, and "" where even that is
    rare."""
    found, general = list(labels), [GENERAL] * len(labels)
    for wider in ([name or GENERAL for name in coarse] or general, general, [""] * len(labels)):
        count = _distinct_prompts(texts, found)
        found = [
            label if count[label] >= MIN_TRAINING_PROMPTS else other for label, other in zip(found, wider, strict=True)
        ]
    return found


def _distinct_prompts(texts: Sequence[str], labels: Sequence[str]) -> Counter[str]:
    """The number of distinct prompts of each label; a prompt with two labels counts for neither."""
    known: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        if text:
            known.setdefault(text, set()).add(label)
    return Counter(label for found in known.values() if len(found) == 1 for label in found)


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
