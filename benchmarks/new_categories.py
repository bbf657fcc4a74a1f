"""Accuracy for categories that are declared by a description and a few examples, without training.

    python benchmarks/new_categories.py [--starter FILE] [--config FILE] [--json FILE]

Each category of the starter prompts in turn is left out of training (four fifths of the prompts) and declared instead,
with its description and eight prompts; the other fifth is tested.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import routers
from coe.core import Router
from coe.registry import load
from routers.cascade import CONFIG, EXEMPLARS, NETWORK, TOKENIZER
from routers.encoders import LocalRunner, OnnxEncoder
from routers.examples import TrainingSet, build_training_set, prompt_digest
from routers.files import write_json
from routers.heads.lexical import LexicalMatrix
from routers.training.build import compute_training_data
from routers.training.fitting import (
    Regularization,
    TrainingData,
    choose_regularization,
    exemplar_rows,
    folds,
    write_heads,
)

GIVEN = 8
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starter", type=Path, default=Path("routers/starter/prompts.jsonl"))
    parser.add_argument("--config", type=Path, default=Path("experts.yaml"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = json.dumps(new_categories(options.starter, options.config), indent=1)
    print(report)
    if options.json:
        options.json.write_text(report + "\n", encoding="utf-8")


def new_categories(file: Path, declaration: Path) -> dict[str, Any]:
    """Recall and precision of each category as a declared one, and the accuracy that the others lose by it."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    training_set = build_training_set([routers.Example(line["prompt"], line["category"]) for line in lines])
    described = {category.name: category.description for category in load(declaration, environ={}).categories}
    found = {}
    with tempfile.TemporaryDirectory() as name, threadpool_limits(1, user_api="blas"):
        folder = Path(name)
        build_from = base_of(training_set, folder)
        for category in training_set.categories:
            found[category] = readmit(category, described[category], training_set, *build_from, folder)
    mean = {key: float(np.mean([row[key] for row in found.values()])) for key in next(iter(found.values()))}
    return {"seed": SEED, "examples": GIVEN, "mean": mean, **found}


def base_of(training_set: TrainingSet, folder: Path) -> tuple[TrainingData, Regularization]:
    """Train on all categories; return the training data and the regularization."""
    routers.build([routers.Example(*pair) for pair in pairs(training_set)], out=folder, seed=SEED)
    open_network = partial(OnnxEncoder, tokenizer=folder / TOKENIZER)
    embeddings = open_network(folder / NETWORK).features(training_set.texts)
    data = compute_training_data(
        training_set, embeddings, out=folder, open_network=open_network, report=lambda share: None
    )
    return data, choose_regularization(data, seed=SEED, runner=LocalRunner())


def pairs(training_set: TrainingSet) -> list[tuple[str, str]]:
    return [
        (text, training_set.categories[label])
        for text, label in zip(training_set.texts, training_set.labels, strict=True)
    ]


def readmit(
    category: str,
    description: str,
    training_set: TrainingSet,
    data: TrainingData,
    regularization: Regularization,
    folder: Path,
) -> dict[str, float]:
    left = training_set.categories.index(category)
    rest, held = folds(training_set.labels, seed=SEED)[0]
    seen = rest[training_set.labels[rest] != left]
    write_without(left, seen, training_set, data, regularization, folder)
    own = np.random.default_rng(SEED).permutation(rest[training_set.labels[rest] == left])[:GIVEN]
    declared: dict[str, Sequence[str]] = dict.fromkeys(training_set.categories, ())
    texts = [training_set.texts[i] for i in held]
    truth = np.array([training_set.categories[i] for i in training_set.labels[held]])
    old = truth != category
    before, escalated_before = answers(routers.load(folder), texts)
    after, escalated = answers(
        routers.load(folder, declared=declared | {category: [description, *(training_set.texts[i] for i in own)]}),
        texts,
    )
    return {
        "recall": float((after == truth)[~old].mean()),
        "precision": float((truth == category)[after == category].mean()),
        "loss_of_others": float((before == truth)[old].mean() - (after == truth)[old].mean()),
        "escalated_before": escalated_before,
        "escalated": escalated,
    }


def write_without(
    left: int,
    seen: NDArray[np.int64],
    training_set: TrainingSet,
    data: TrainingData,
    regularization: Regularization,
    folder: Path,
) -> None:
    """Write a router to `folder` that is fitted on the texts `seen`, none of them of the category `left`."""
    labels = training_set.labels[seen]
    part = replace(
        data,
        labels=np.where(labels > left, labels - 1, labels),
        classes=data.classes - 1,
        lexical=LexicalMatrix(matrix=data.lexical.matrix[seen], idf=data.lexical.idf),
        static=data.static[seen],
        embeddings=data.embeddings[seen],
    )
    write_heads(part, regularization, out=folder, seed=SEED)
    rows = exemplar_rows(part, np.arange(len(part.labels)), seed=SEED)
    write_json(folder / EXEMPLARS, {"digests": [prompt_digest(training_set.texts[seen[row]]) for row in rows]})
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["categories"] = [name for index, name in enumerate(training_set.categories) if index != left]
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def answers(router: Router, texts: Sequence[str]) -> tuple[NDArray[Any], float]:
    """Return the most likely categories and the share escalated."""
    predictions = router.predict(texts)
    escalated = float(np.mean([p.stage == "encoder" for p in predictions]))
    return np.array([router.categories[p.best] for p in predictions]), escalated


if __name__ == "__main__":
    main()
