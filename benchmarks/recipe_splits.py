"""Compares single experts with recipes at all budgets, as `coe benchmark --recipes` does, without training a router.

    .venv/bin/python -m benchmarks.recipe_splits DIR [--max-active-b 15] [--seeds 0,1,2,3,4]

DIR is a folder of quality data with recorded answers. A logistic regression on words stands in for the router: it is
fitted in seconds on the training part of each split. It knows fewer categories than a trained router, for both plans.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from coe.cli.benchmark import show_recipes
from coe.measuring.benchmark.benchmark import TRAIN_SHARE
from coe.measuring.quality import Quality, read_quality
from coe.measuring.recorded_answers import read_answers
from coe.planning.score_table import fit_pseudo_count, tabulate_prompts
from coe.recipes.agreement import Array
from coe.recipes.fitting.answers import Answers
from coe.recipes.fitting.benchmark import compare, recipe_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--benchmark", default="mmlupro")
    parser.add_argument("--max-active-b", type=float)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    options = parser.parse_args()
    data = read_quality(options.folder, benchmark=options.benchmark, max_active_b=options.max_active_b, open_only=True)
    answers = _answers(options.folder, data)
    splits, prompts = [], []
    for seed in map(int, options.seeds.split(",")):
        shuffled = np.random.default_rng(seed).permutation(len(data.prompts))
        fitted, tested = np.split(shuffled, [round(TRAIN_SHARE * len(shuffled))])
        train, test = answers.rows(fitted), answers.rows(tested)
        posterior = _posterior(data, answers, fitted, tested)
        right = (posterior.argmax(axis=1) == test.labels).mean()
        splits.append(compare(train, test, posterior, quality=_quality(train)))
        prompts.append(tested)
        print(f"split {seed}: {right:.3f} of the categories are right", flush=True)
    show_recipes(recipe_report(splits, prompts))


def _answers(folder: Path, data: Quality) -> Answers:
    recorded = read_answers(folder, data)
    if recorded is None:
        raise SystemExit(f"{folder}: no table of answers")
    names = sorted(set(data.categories))
    return Answers(
        experts=data.models,
        classes=recorded.classes,
        scores=data.scores.astype(np.float64),
        costs=data.active_b * recorded.tokens / 1000,
        tokens=recorded.tokens,
        labels=np.array([names.index(name) for name in data.categories]),
        n_categories=len(names),
    )


def _posterior(data: Quality, answers: Answers, fitted: Any, tested: Any) -> Array:
    """Return the probabilities of the categories of the tested prompts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(sublinear_tf=True, min_df=2)
    inputs = words.fit_transform([data.prompts[row] for row in fitted])
    model = LogisticRegression(C=10, max_iter=150).fit(inputs, answers.labels[fitted])
    return np.asarray(model.predict_proba(words.transform([data.prompts[row] for row in tested])))


def _quality(train: Answers) -> Array:
    """Return the quality of single experts by category as a plan expects it."""
    labels = [str(label) for label in train.labels]
    categories = [str(number) for number in range(train.n_categories)]
    table = tabulate_prompts(labels, train.experts, train.scores, categories=categories)
    return table.shrunk(pseudo_count=fit_pseudo_count(labels, train.scores))


if __name__ == "__main__":
    main()
