"""Further training texts for categories with few prompts: their name and description, and shipped prompts.

A classifier of the given prompts reads the shipped prompts that are not among them. Those that it surely takes for a
category with few prompts become texts of this category; some of the others become texts of `general`, so that a request
of another topic does not seem to belong to the nearest category. Both are bounded by the number of given prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coe.core import GENERAL
from routers.calibration import Floats
from routers.examples import Example, TrainingSet, prompt_digest, starter_examples
from routers.heads import fit_linear, softmax

FEW_PROMPTS = 60
"""A category with fewer prompts gets further texts."""
C = 10.0
"""scikit-learn's inverse regularization of the classifier that chooses them."""
MIN_PROBABILITY = 0.7
"""Probability from which a shipped prompt counts as one of a category."""
MAX_LIKE, MAX_BACKGROUND = 10, 3
"""Shipped prompts of a category, and of `general`, as multiples of the prompts given for the category, and for all."""


def with_support(
    training_set: TrainingSet, descriptions: Mapping[str, str], embed: Callable[[Sequence[str]], Floats]
) -> TrainingSet:
    """Add texts for the categories with few prompts; the given prompts stay the `declared` ones.

    Without `general`, or if no category has few prompts, the set stays as it is.
    """
    names, labels = training_set.categories, training_set.labels
    few = [i for i, count in enumerate(np.bincount(labels)) if count < FEW_PROMPTS and names[i] != GENERAL]
    if GENERAL not in names or not few:
        return training_set
    general, known = names.index(GENERAL), set(training_set.texts)
    described = [(f"{names[i].replace('_', ' ')}: {descriptions.get(names[i], '')}", i) for i in few]
    shipped = [one for one in starter_examples() if one.prompt not in known]
    texts = [*training_set.texts, *(text for text, _ in described), *(one.prompt for one in shipped)]
    vectors, count = embed(texts), len(labels) + len(described)
    given = np.concatenate((labels, [label for _, label in described])).astype(np.int64)
    head = fit_linear(vectors[:count], given, c=C, classes=len(names))
    posterior = softmax(head.logits(vectors[count:]))
    chosen = _choose(shipped, posterior, np.bincount(given), few=few, general=general)
    added = [*described, *((shipped[row].prompt, label) for row, label in chosen)]
    return replace(
        training_set,
        texts=training_set.texts + tuple(text for text, _ in added),
        labels=np.concatenate((labels, [label for _, label in added])).astype(np.int64),
        declared=np.arange(len(labels) + len(added)) < len(labels),
    )


def _choose(
    shipped: Sequence[Example], posterior: Floats, given: np.ndarray, *, few: Sequence[int], general: int
) -> list[tuple[int, int]]:
    """Return rows of `shipped` and the category that each joins."""
    best, found = posterior.argmax(axis=1), list[tuple[int, int]]()
    topical = np.array([one.category != GENERAL for one in shipped], dtype=bool)
    for label in few:
        rows = np.flatnonzero(topical & (best == label) & (posterior[:, label] > MIN_PROBABILITY))
        rows = rows[np.argsort(-posterior[rows, label], kind="stable")][: MAX_LIKE * given[label]]
        found += [(int(row), label) for row in rows]
    others = sorted(np.flatnonzero(best == general).tolist(), key=lambda row: prompt_digest(shipped[row].prompt))
    return found + [(row, general) for row in others[: MAX_BACKGROUND * int(given[few].sum())]]
