"""How much of the possible gain routing reaches on quality data: CoE as served against its rivals and its bounds.

What CoE is measured against: nearest neighbours and ridge regression on embeddings, tuned on folds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.core import GENERAL, Router
from coe.errors import DataError
from coe.learning.benchmark.frontier import FrontierPoint, average, hull_area, trace
from coe.learning.evaluation.quality import Quality
from coe.mapping import Assignment, Problem, expected_utility, solve
from coe.mapping.score_table import fit_pseudo_count, tabulate_prompts

Floats_rivals = NDArray[np.floating]
Predict = Callable[[Floats_rivals, Floats_rivals, Floats_rivals, float], NDArray[np.float64]]
"""(vectors, scores) to learn from, vectors to predict for, strength -> predicted scores (n_prompts, n_models)."""

NEIGHBOURS = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 4


def nearest(
    vectors: Floats_rivals, scores: Floats_rivals, wanted: Floats_rivals, strength: float
) -> NDArray[np.float64]:
    """Mean scores of the `strength` prompts most similar by cosine; vectors are unit length."""
    neighbours = min(int(strength), len(vectors))
    closest = np.argpartition(-(wanted @ vectors.T), neighbours - 1, axis=1)[:, :neighbours]
    return np.asarray(scores[closest].mean(axis=1), dtype=np.float64)


def ridge(vectors: Floats_rivals, scores: Floats_rivals, wanted: Floats_rivals, strength: float) -> NDArray[np.float64]:
    """One ridge regression a model, with an intercept that is not penalised."""
    centre, level = vectors.mean(axis=0), scores.mean(axis=0)
    inputs = (vectors - centre).astype(np.float64)
    gram = inputs.T @ inputs + strength * np.eye(inputs.shape[1])
    return np.asarray((wanted - centre) @ np.linalg.solve(gram, inputs.T @ (scores - level)) + level)


def tuned(
    predict: Predict,
    vectors: Floats_rivals,
    scores: Floats_rivals,
    wanted: Floats_rivals,
    *,
    grid: Sequence[float],
    seed: int,
) -> NDArray[np.float64]:
    """Predictions with the strength of `grid` whose choices score best on held-out folds of what is learnt from."""
    fold = np.random.default_rng(seed).permutation(len(vectors)) % FOLDS
    reached = []
    for strength in grid:
        gained = 0.0
        for held in range(FOLDS):
            rest, away = fold != held, fold == held
            chosen = predict(vectors[rest], scores[rest], vectors[away], strength).argmax(axis=1)
            gained += float(scores[away][np.arange(len(chosen)), chosen].sum())
        reached.append(gained)
    return predict(vectors, scores, wanted, grid[int(np.argmax(reached))])


SEEDS = (0, 1, 2, 3, 4)
TRAIN_SHARE = 0.7
FEWEST = 8
"""Different training prompts below which a label is not learnt by itself but joins its category, or the general one."""
TIMED = 200
"""Prompts whose routing time is measured."""

Floats = NDArray[np.floating]
TrainRouter = Callable[[Sequence[tuple[str, str]], Path], Router]
"""(prompt, category) pairs and an empty folder to a router as it is served."""
Prepared = Callable[[str], str]
"""What of a prompt a router learns from, empty where that is nothing; prompts alike in it are one."""
Encode = Callable[[Path, Sequence[str]], Floats]
"""The folder of a trained router and texts to unit-length vectors, shape (n_texts, dimensions)."""
Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Split:
    """One seed's result: each method's mean score and mean size, the traces of three, and routing times in ms."""

    score: dict[str, float]
    size: dict[str, float]
    traces: dict[str, list[FrontierPoint]]
    route_ms: list[float]


def benchmark(
    data: Quality,
    *,
    train_router: TrainRouter,
    prepared: Prepared,
    encode: Encode,
    work: Path,
    seeds: Sequence[int] = SEEDS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Random 70/30 splits by `seeds`: everything is learnt and tuned on the larger part, and scored on the other.

    Routers are trained into folders of `work`; the rivals learn on the vectors of the first one's encoder, which are
    kept there. Returns a JSON-able report: mean and standard deviation over splits of each method, the share of the gap
    between best single model and oracle that CoE closes, its frontier, hull areas and routing time. Sizes, frontier and
    areas are null or empty where a model's size is not known. Raises DataError when the data cannot be split.
    """
    if len(set(data.categories)) < 2:
        raise DataError(f"{data.benchmark}: all prompts have one category; routing takes two")
    tell = progress or (lambda stage, share: None)
    texts, splits = [prepared(prompt) for prompt in data.prompts], []
    for number, seed in enumerate(seeds):
        tell(f"split {number + 1} of {len(seeds)}", number / len(seeds))
        splits.append(_split(data, texts, train_router=train_router, encode=encode, work=work, seed=seed))
    tell("done", 1.0)
    return _report(data, splits, seeds)


def _vectors(data: Quality, encode: Encode, work: Path, router: Path) -> Floats:
    """Embeddings of all prompts, read from `work` when the same prompts were embedded before."""
    path = work / f"vectors-{data.digest[:16]}.npy"
    if path.is_file():
        return np.asarray(np.load(path, allow_pickle=False))
    vectors = np.asarray(encode(router, data.prompts), dtype=np.float32)
    np.save(path, vectors)
    return vectors


def _split(
    data: Quality, texts: Sequence[str], *, train_router: TrainRouter, encode: Encode, work: Path, seed: int
) -> Split:
    """`texts` are the prompts as they are learnt from."""
    shuffled = np.random.default_rng(seed).permutation(len(data.prompts))
    train, test = np.split(shuffled, [round(TRAIN_SHARE * len(shuffled))])
    folder = work / f"router-{data.digest[:16]}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    router, assignment = _learn(data, texts, train, train_router, folder)
    vectors = _vectors(data, encode, work, folder)
    posteriors = np.stack([p.probabilities for p in router.predict([data.prompts[i] for i in test])])
    value = {
        "coe": np.stack([expected_utility(assignment, posterior) for posterior in posteriors]),
        "knn": tuned(nearest, vectors[train], data.scores[train], vectors[test], grid=NEIGHBOURS, seed=seed),
        "ridge": tuned(ridge, vectors[train], data.scores[train], vectors[test], grid=PENALTIES, seed=seed),
    }
    choice = {name: expects.argmax(axis=1) for name, expects in value.items()}
    choice["coe_hard"] = assignment.quality[posteriors.argmax(axis=1)].argmax(axis=1)
    choice |= _bounds(data, train, test)
    scores, everyone = data.scores[test], np.arange(len(test))
    known = bool(np.isfinite(data.active_b).all())
    return Split(
        score={"random": float(scores.mean())} | {n: float(scores[everyone, c].mean()) for n, c in choice.items()},
        size={"random": float(data.active_b.mean())} | {n: float(data.active_b[c].mean()) for n, c in choice.items()},
        traces={name: trace(expects, scores, data.active_b) for name, expects in value.items()} if known else {},
        route_ms=_route_ms(router, assignment, [data.prompts[i] for i in test[:TIMED]]),
    )


def _learn(
    data: Quality, texts: Sequence[str], train: NDArray[np.int64], train_router: TrainRouter, folder: Path
) -> tuple[Router, Assignment]:
    """A router for the categories of the training part and the assignment over them, as `coe train` and `coe plan`
    make them."""
    coarse = [data.coarse[i] for i in train if data.coarse]
    labels = _learnable([texts[i] for i in train], [data.categories[i] for i in train], coarse)
    if len(set(labels) - {""}) < 2:
        told = f"{data.benchmark}: fewer than two categories have {FEWEST} different prompts to learn from"
        raise DataError(f"{told}; score more prompts, or sort them into fewer categories")
    pairs = [(data.prompts[i], label) for i, label in zip(train, labels, strict=True)]
    router = train_router([pair for pair in pairs if pair[1]], folder)
    there = [number for number, label in enumerate(labels) if label in router.categories]
    known, scores = [labels[number] for number in there], data.scores[train[there]]
    table = tabulate_prompts(known, data.models, scores, categories=router.categories)
    strength = fit_pseudo_count(known, scores)
    return router, solve(Problem.of(table, quality=table.shrunk(pseudo_count=strength)))


def _learnable(texts: Sequence[str], labels: Sequence[str], coarse: Sequence[str]) -> list[str]:
    """Labels with the rare ones joined to their coarse category, where that is rare to the general one, and "" where
    even that is."""
    found, general = list(labels), [GENERAL] * len(labels)
    for wider in ([name or GENERAL for name in coarse] or general, general, [""] * len(labels)):
        count = _different(texts, found)
        found = [label if count[label] >= FEWEST else other for label, other in zip(found, wider, strict=True)]
    return found


def _different(texts: Sequence[str], labels: Sequence[str]) -> Counter[str]:
    """How many different prompts each label has; one under two labels teaches neither."""
    known: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        if text:
            known.setdefault(text, set()).add(label)
    return Counter(label for found in known.values() if len(found) == 1 for label in found)


def _bounds(data: Quality, train: NDArray[np.int64], test: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Choices of the best single model of the training part, and of two that look at the test scores: the best model
    of each true category, and the best (then smallest) model of each prompt."""
    scores = data.scores[test]
    names, rows = np.unique([data.categories[i] for i in test], return_inverse=True)
    total = np.zeros((len(names), len(data.models)))
    np.add.at(total, rows, scores)
    smallest_first = np.argsort(data.active_b, kind="stable")  # NaN, not known, goes last
    return {
        "best_single": np.full(len(test), int(data.scores[train].mean(axis=0).argmax())),
        "class_map_on_test": total.argmax(axis=1)[rows],
        "oracle": smallest_first[scores[:, smallest_first].argmax(axis=1)],
    }


def _route_ms(router: Router, assignment: Assignment, prompts: Sequence[str]) -> list[float]:
    """Milliseconds from each text to its expert, one at a time, as a request is served."""
    times = []
    for prompt in prompts:
        began = time.perf_counter()
        prediction = router.predict_fast(prompt) or router.predict([prompt])[0]
        expected_utility(assignment, prediction.probabilities).argmax()
        times.append(1000.0 * (time.perf_counter() - began))
    return times


# ----------------------------------------------------------------------------------------------- the report

METHODS = ("random", "best_single", "knn", "ridge", "coe_hard", "coe", "class_map_on_test", "oracle")


def _report(data: Quality, splits: Sequence[Split], seeds: Sequence[int]) -> dict[str, Any]:
    methods = {name: _summary([s.score[name] for s in splits], [s.size[name] for s in splits]) for name in METHODS}
    mean = {name: float(found["mean"] or 0.0) for name, found in methods.items()}
    gap = mean["oracle"] - mean["best_single"]
    traces = {name: average([s.traces[name] for s in splits]) for name in splits[0].traces}
    times = np.concatenate([s.route_ms for s in splits])
    return {
        "benchmark": data.benchmark,
        "prompts": len(data.prompts),
        "left_out": data.left_out,
        "models": len(data.models),
        "splits": len(splits),
        "seeds": list(seeds),
        "methods": methods,
        "gap_closed": (mean["coe"] - mean["best_single"]) / gap if gap > 0 else None,
        "frontier": [asdict(point) for point in traces.get("coe", ())],
        "hull_area": {name: hull_area(points, data.active_b) for name, points in traces.items()},
        "route_ms": {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))},
    }


def _summary(scores: Sequence[float], sizes: Sequence[float]) -> dict[str, float | None]:
    size = float(np.mean(sizes))
    return {
        "mean": float(np.mean(scores)),
        "std": float(np.std(scores)),
        "mean_active_b": size if np.isfinite(size) else None,
    }
