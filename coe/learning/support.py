"""Further training texts for categories with few prompts: their name and description, and shipped prompts.

A shipped category is about the same topic as one with few prompts if most of these prompts fall into it, and a fair
part of its own prompts into the other. Then its prompts join the other. Some of the remaining shipped prompts become
texts of `general`, so that a request of another topic does not seem to belong to the nearest category. Both are bounded
by the number of given prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coe.core import GENERAL
from routers.calibration import Floats
from routers.examples import Example, TrainingSet, prompt_digest, starter_examples
from routers.heads import fit_linear

FEW_PROMPTS = 60
"""A category with fewer prompts gets further texts."""
C = 3.0
"""scikit-learn's inverse regularization of the two classifiers that compare topics."""
MIN_INTO_SHIPPED, MIN_INTO_GIVEN = 0.6, 0.15
"""Shares by which two categories have the same topic: of the given prompts that fall into the shipped category, and of
the shipped ones that fall into the given category. The second is at most .10 where the given category is a small part
of the shipped one, such as parcels of everyday life (docs/experiments/router-training.md)."""
MAX_LIKE, MAX_BACKGROUND = 50, 3
"""Shipped prompts of a category, and of `general`, as multiples of the prompts given for the category, and for all."""


def with_support(
    training_set: TrainingSet, embed: Callable[[Sequence[str]], Floats], *, descriptions: Mapping[str, str]
) -> TrainingSet:
    """Add texts for the categories with few prompts; the given prompts stay the `declared` ones.

    Without `general`, or if no category has few prompts, the set stays as it is.
    """
    names, labels = training_set.categories, training_set.labels
    few = [i for i, count in enumerate(np.bincount(labels)) if count < FEW_PROMPTS and names[i] != GENERAL]
    if GENERAL not in names or not few:
        return training_set
    known = set(training_set.texts)
    added = [(f"{names[i].replace('_', ' ')}: {descriptions.get(names[i], '')}", i) for i in few]
    given = np.concatenate((labels, [label for _, label in added])).astype(np.int64)
    shipped = [one for one in starter_examples() if one.category != GENERAL and one.prompt not in known]
    if shipped:
        vectors = embed([*training_set.texts, *(text for text, _ in added), *(one.prompt for one in shipped)])
        chosen = _choose(shipped, vectors, given, few=few, general=names.index(GENERAL))
        added += [(shipped[row].prompt, label) for row, label in chosen]
    return replace(
        training_set,
        texts=training_set.texts + tuple(text for text, _ in added),
        labels=np.concatenate((labels, [label for _, label in added])).astype(np.int64),
        declared=np.arange(len(labels) + len(added)) < len(labels),
    )


def _choose(
    shipped: Sequence[Example], vectors: Floats, given: NDArray[np.int64], *, few: Sequence[int], general: int
) -> list[tuple[int, int]]:
    """Return rows of `shipped`, each with the category that it joins. `vectors` are those of the given texts, then of
    the shipped ones."""
    own, other, classes = vectors[: len(given)], vectors[len(given) :], int(given.max()) + 1
    topics = {name: i for i, name in enumerate(sorted({one.category for one in shipped}))}
    topic = np.array([topics[one.category] for one in shipped], dtype=np.int64)
    topic_of_own = fit_linear(other, topic, c=C, classes=len(topics)).logits(own).argmax(axis=1)
    logits = fit_linear(own, given, c=C, classes=classes).logits(other)
    best, taken, found = logits.argmax(axis=1), np.zeros(len(shipped), dtype=bool), list[tuple[int, int]]()
    for label in few:
        for index in range(len(topics)):
            inside, mine = topic == index, given == label
            into_given = float((best[inside] == label).mean())
            if float((topic_of_own[mine] == index).mean()) >= MIN_INTO_SHIPPED and into_given >= MIN_INTO_GIVEN:
                rows = np.flatnonzero(inside & ((best == label) | (best == general)))
                taken[rows] = True
                rows = rows[np.argsort(-(logits[rows, label] - logits[rows, general]), kind="stable")]
                found += [(row, label) for row in rows[: MAX_LIKE * int(mine.sum())].tolist()]
    others = sorted(
        np.flatnonzero((best == general) & ~taken).tolist(), key=lambda row: prompt_digest(shipped[row].prompt)
    )
    return found + [(row, general) for row in others[: MAX_BACKGROUND * int(np.isin(given, few).sum())]]
