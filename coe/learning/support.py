"""Further training texts for categories with few prompts: their name and description, and shipped prompts.

Categories share the topic of a shipped category if most of their prompts fall into it. If they also cover it, its
prompts join them, each the category that it is most like. A few prompts of errands, for example, do not cover the
shipped category of everyday life. Its prompts are then not used, because some of them are errands. Shipped prompts of
other topics become texts of `general`, so that a request of another topic does not seem to belong to the nearest
category. Both are bounded by the number of given prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coe.core import GENERAL
from routers.calibration import Floats
from routers.encoders import OnnxEncoder
from routers.examples import Example, TrainingSet, prompt_digest, starter_examples
from routers.heads import fit_linear, unit

Labels = NDArray[np.int64]
FEW_PROMPTS = 60
"""A category with fewer prompts gets further texts."""
C = 3.0
"""scikit-learn's inverse regularization of the two classifiers that compare topics."""
MIN_SHARE = 0.5
"""Share of the given prompts of a category that fall into the shipped category whose topic it shares."""
MIN_COVERED, MIN_BACK = 0.5, 0.15
"""A shipped category is covered if given prompts are near its prompts, on a scale from 0 (as near as prompts of other
topics) to 1 (as near as its own), or if this share of them falls into one given category. Where topics are the same,
coverage is .55 to 1.3, but as low as 0.3 for code; where the given categories are a small part, it is at most .4
(docs/experiments/router-training.md)."""
COMPARED = 13
"""Texts of a category that its coverage is measured with; with more, coverage falls."""
MAX_LIKE, MAX_BACKGROUND = 50, 3
"""Shipped prompts of a category, and of `general`, as multiples of the prompts given for the category, and for all."""


def with_support(training_set: TrainingSet, encoder: OnnxEncoder, *, descriptions: Mapping[str, str]) -> TrainingSet:
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
        shipped.sort(key=lambda one: prompt_digest(one.prompt))  # any first ones are a sample
        texts = [*training_set.texts, *(text for text, _ in added)]
        chosen = _choose(shipped, texts, given, encoder, few, names.index(GENERAL))
        added += [(shipped[row].prompt, label) for row, label in chosen]
    return replace(
        training_set,
        texts=training_set.texts + tuple(text for text, _ in added),
        labels=np.concatenate((labels, [label for _, label in added])).astype(np.int64),
        declared=np.arange(len(labels) + len(added)) < len(labels),
    )


def _choose(
    shipped: Sequence[Example], texts: Sequence[str], given: Labels, encoder: OnnxEncoder, few: list[int], general: int
) -> list[tuple[int, int]]:
    """Return rows of `shipped`, each with the category that it joins. `given` (n_texts,) are the labels of `texts`."""
    vectors = encoder.features([*texts, *(one.prompt for one in shipped)])
    own, other, classes = vectors[: len(given)], vectors[len(given) :], int(given.max()) + 1
    sentences = unit(vectors[:, : encoder.dimensions] - other[:, : encoder.dimensions].mean(axis=0))
    names, topic = np.unique([one.category for one in shipped], return_inverse=True)
    topic_of_own = fit_linear(other, topic, c=C, classes=len(names)).logits(own).argmax(axis=1)
    logits = fit_linear(own, given, c=C, classes=classes).logits(other)
    best, is_free, found = logits.argmax(axis=1), np.ones(len(shipped), dtype=bool), list[tuple[int, int]]()
    for index in range(len(names)):
        sharing = [label for label in few if (topic_of_own[given == label] == index).mean() >= MIN_SHARE]
        if not sharing:
            continue
        inside = topic == index
        is_free &= ~inside
        near = np.concatenate([np.flatnonzero(given == label)[:COMPARED] for label in sharing])
        if _coverage(sentences[len(given) :], inside, sentences[near]) < MIN_COVERED:
            sharing = [label for label in sharing if (best[inside] == label).mean() >= MIN_BACK]
        joins = inside & np.isin(best, [*sharing, general])
        for column, label in enumerate(sharing):
            rows = np.flatnonzero(joins & (logits[:, sharing].argmax(axis=1) == column))
            rows = rows[np.argsort(logits[rows, general] - logits[rows, label], kind="stable")]
            found += [(row, label) for row in rows[: MAX_LIKE * int((given == label).sum())].tolist()]
    others = np.flatnonzero((best == general) & is_free).tolist()
    return found + [(row, general) for row in others[: MAX_BACKGROUND * int(np.isin(given, few).sum())]]


def _coverage(shipped: Floats, inside: NDArray[np.bool_], given: Floats) -> float:
    """Return how near the `inside` ones of the shipped vectors are to their nearest `given` one: 0 as to as many
    vectors outside, 1 as to as many of their own."""
    own = shipped[inside]
    size = min(len(given), len(own) // 2)
    near = (given, shipped[~inside][:size], own[:size])
    to_given, to_others, to_own = (float((own[size:] @ one.T).max(axis=1).mean()) for one in near)
    return (to_given - to_others) / max(to_own - to_others, 1e-9)
