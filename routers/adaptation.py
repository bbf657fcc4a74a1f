"""A trained router over other categories: new ones from a few of their texts, dropped ones folded into `general`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coe.core import GENERAL, LOAD_SHED, Neighbour, Prediction, Router
from routers.calibration import Floats
from routers.cascade import CascadeRouter, HeadOutputs
from routers.examples import prompt_digest
from routers.heads.fast import FastFeatures
from routers.heads.in_distribution import unit, unit_mean

STATIC_WEIGHT, STATIC_BIAS = 17.6, -0.4
NEW_CATEGORY_PRIOR_NATS = 1.0
"""Static vectors tell less, so `predict_fast` takes new categories for this many nats likelier before it answers."""
MEAN_WEIGHT, NEAREST_WEIGHT, BIAS = 14.0, 7.7, 0.7
"""Logistic weights of the evidence for a new category, fitted on the starter prompts: each category left out in turn,
eight of its prompts and its description given."""


@dataclass(frozen=True, slots=True)
class NewCategories:
    """New categories in one space of vectors: their `means` (n_new, dimensions), and those of their `rivals`.

    `centre` (dimensions,) is taken off every vector, so that encoders whose vectors all lean one way are told apart;
    means are what is left, of unit length.
    """

    means: Floats
    rivals: Floats
    centre: Floats

    @classmethod
    def of(cls, texts: Sequence[Floats], rivals: Floats, centre: Floats) -> NewCategories:
        """From the vectors (n_texts, dimensions) of each new category."""
        means = np.array([unit_mean(unit(own - centre)) for own in texts], dtype=np.float32)
        return cls(means=means.reshape(-1, len(centre)), rivals=rivals, centre=centre)

    def margins(self, vectors: Floats) -> Floats:
        """By how much the cosine to each new mean exceeds that to the nearest rival: (n_texts, n_new)."""
        vectors = unit(vectors - self.centre)
        result: Floats = vectors @ self.means.T - (vectors @ self.rivals.T).max(axis=-1, keepdims=True)
        return result


class AdaptedRouter:
    """A coe.core.Router. Thread-safe: nothing changes after construction.

    `targets` (n_base_categories,) says where each of the base's categories goes among `categories`, `new` (n_new,)
    where the new ones stand; `exemplars` holds the vectors (n_texts, n_axes) of each new category's texts, as
    the base's exemplars have them, and `digests` what those texts are known by.
    """

    def __init__(
        self,
        base: CascadeRouter,
        *,
        categories: tuple[str, ...],
        version: str,
        targets: NDArray[np.int64],
        new: NDArray[np.int64],
        static: NewCategories,
        semantic: NewCategories,
        exemplars: Sequence[Floats],
        digests: Sequence[Sequence[str]],
    ) -> None:
        self.categories = categories
        self.version = version
        self._base = base
        self._targets = targets
        self._new = new
        self._static = static
        self._semantic = semantic
        self._exemplars = exemplars
        self._digests = digests

    def predict_fast(self, text: str, *, force: bool = False) -> Prediction | None:
        """The base's cheap answer, unless it is unsure or a new category may be near and nobody is in a hurry."""
        found = self._guess(self._base.glance(text))
        return found if force or found.stage != LOAD_SHED else None

    def predict(self, texts: Sequence[str], *, embeddings: Floats | None = None) -> list[Prediction]:
        """One Prediction a text; the encoder sees only those that `predict_fast` leaves open, none where `embeddings`
        are given: then all heads judge all texts."""
        if embeddings is not None:
            return self._full(self._base.study(texts, embeddings=embeddings)) if texts else []
        glances = [self._base.glance(text) for text in texts]
        found = [self._guess(glance) for glance in glances]
        unsure = [index for index, prediction in enumerate(found) if prediction.stage == LOAD_SHED]
        if unsure:
            study = self._base.study([texts[index] for index in unsure], glances=[glances[index] for index in unsure])
            for index, prediction in zip(unsure, self._full(study), strict=True):
                found[index] = prediction
        return found

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        """The base's exemplars, each of the category that its own counts as, and the texts of new categories."""
        (vector,) = unit(self._base.knn.place(self._base.encoder.encode([text])))
        found = [
            Neighbour(self.categories[int(self._targets[label])], similarity, digest)
            for label, similarity, digest in self._base.knn.nearest(vector, limit=limit)
        ]
        for place, own, digests in zip(self._new, self._exemplars, self._digests, strict=True):
            found += map(partial(Neighbour, self.categories[int(place)]), (own @ vector).tolist(), digests)
        return sorted(found, key=lambda one: -one.similarity)[:limit]

    def _guess(self, glance: FastFeatures) -> Prediction:
        """The cheap answer, hurried where it should not stand."""
        guess = self._base.guess(glance)
        odds = np.exp(STATIC_WEIGHT * self._static.margins(glance.vector) + STATIC_BIAS)
        unsure = (
            guess.confidence / (1 + float(odds.sum()) * np.e**NEW_CATEGORY_PRIOR_NATS) < self._base.pooling.threshold
        )
        return self._joined(replace(guess, stage=LOAD_SHED) if unsure else guess, odds)

    def _full(self, study: HeadOutputs) -> list[Prediction]:
        nearest = np.zeros((len(study.vectors), len(self._new)), dtype=np.float32)
        for column, own in enumerate(self._exemplars):
            nearest[:, column] = (study.placed @ own.T).max(axis=1)
        logits = MEAN_WEIGHT * self._semantic.margins(study.vectors)
        logits += NEAREST_WEIGHT * (nearest - study.similarity[:, None]) + BIAS
        return [self._joined(*pair) for pair in zip(self._base.conclude(study), np.exp(logits), strict=True)]

    def _joined(self, prediction: Prediction, odds: Floats) -> Prediction:
        """The base's posterior over the declared categories, and the new ones at `odds` (n_new,) to all of it."""
        posterior = np.zeros(len(self.categories), dtype=np.float32)
        np.add.at(posterior, self._targets, prediction.probabilities)
        posterior[self._new] += odds
        total = 1 + float(odds.sum())
        return Prediction(posterior / np.float32(total), prediction.stage, 1 - (1 - prediction.in_distribution) / total)


def adapt(base: CascadeRouter, declared: Mapping[str, Sequence[str]]) -> Router:
    """`base` over the `declared` categories, of which `general` must be one and one other must be trained.

    A category that the base was not trained on is known by its texts (one or more); those of the others are not read.
    What the base was trained on and is not declared counts as `general`.
    """
    if set(declared) == set(base.categories):
        return base
    categories = tuple(declared)
    new = [name for name in categories if name not in base.categories and declared[name]]
    kept = [index for index, name in enumerate(base.categories) if name in declared]
    encoded = [base.encoder.encode(declared[name]) for name in new]
    glanced = [np.stack([base.glance(text).vector for text in declared[name]]) for name in new]
    return AdaptedRouter(
        base,
        categories=categories,
        version=base.version,
        targets=np.array([categories.index(n if n in declared else GENERAL) for n in base.categories]),
        new=np.array([categories.index(name) for name in new], dtype=np.int64),
        static=NewCategories.of(glanced, base.places.means[kept], np.zeros_like(base.places.means[0])),
        semantic=NewCategories.of(encoded, base.middles.means[kept], base.middles.centre),
        exemplars=[unit(base.knn.place(own)) for own in encoded],
        digests=[[prompt_digest(text) for text in declared[name]] for name in new],
    )
