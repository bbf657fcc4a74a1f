"""Recorded answers of made-up experts, for tests of recipes."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coe.recipes.fitting.fit import Answers

CHOICES = 10


def recorded_answers(
    accuracy: dict[str, tuple[float, ...]], cost: dict[str, float], *, prompts: int = 3000, seed: int = 0
) -> Answers:
    """Experts that are right independently, by category, and otherwise choose one of the wrong answers."""
    random = np.random.default_rng(seed)
    categories = len(next(iter(accuracy.values())))
    labels = random.integers(categories, size=prompts)
    right = np.stack([random.random(prompts) < np.array(by_category)[labels] for by_category in accuracy.values()], 1)
    answers = np.where(right, 0, random.integers(1, CHOICES, size=right.shape))
    return Answers(
        experts=tuple(accuracy),
        classes=answers.astype(np.int64),
        scores=right.astype(np.float64),
        costs=np.tile([cost[name] for name in accuracy], (prompts, 1)),
        tokens=np.full(right.shape, 100.0),
        labels=labels,
        n_categories=categories,
    )


def halves(answers: Answers) -> tuple[Answers, Answers]:
    """Two halves of the prompts."""
    numbers = np.arange(len(answers.labels))
    return rows_of(answers, numbers[::2]), rows_of(answers, numbers[1::2])


def rows_of(answers: Answers, rows: NDArray[np.int64]) -> Answers:
    """The answers to some prompts."""
    columns = {name: getattr(answers, name)[rows] for name in ("classes", "scores", "costs", "tokens", "labels")}
    return replace(answers, **columns)
