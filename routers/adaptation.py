"""Adapt a trained router to other categories without training.

A new category is known by a few example texts: its odds come from the margin of its mean over the trained categories'
means, once for static vectors (fast stage) and once for encoder vectors. A trained category that is not declared is
folded into `general`. Of texts that are not English, a new category gets none until the router is trained with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coe.core import FAST_UNCERTAIN, GENERAL, Neighbour, Prediction
from routers.calibration import Floats
from routers.cascade import CascadeRouter, HeadOutputs
from routers.examples import prompt_digest
from routers.heads import FastFeatures, unit, unit_mean

STATIC_WEIGHT, STATIC_BIAS = 17.6, -0.4
MEAN_WEIGHT, NEAREST_WEIGHT, BIAS = 14.0, 7.7, 0.7
"""Logistic weights of the evidence for a new category. They were fitted on the starter prompts: each category left out
in turn, and described by eight of its prompts and its description."""
FAST_MARGIN_NATS = 1.0
"""Static vectors are less accurate, so `predict_fast` raises the odds of new categories by this before it accepts its
own prediction."""


@dataclass(frozen=True, slots=True)
class NewCategories:
    """New categories in one vector space: their unit `means` (n_new, dimensions), and those of the trained `rivals`.

    `centre` (dimensions,) is subtracted from every vector, because the vectors of some encoders share one direction.
    """

    means: Floats
    rivals: Floats
    centre: Floats

    @classmethod
    def of(cls, texts: Sequence[Floats], rivals: Floats, centre: Floats) -> NewCategories:
        """Compute the means from the vectors (n_texts, dimensions) of each new category."""
        means = np.array([unit_mean(unit(own - centre)) for own in texts], dtype=np.float32)
        return cls(means=means.reshape(-1, len(centre)), rivals=rivals, centre=centre)

    def margins(self, vectors: Floats) -> Floats:
        """Return the cosine to each new mean minus the cosine to the nearest rival: (n_texts, n_new)."""
        vectors = unit(vectors - self.centre)
        result: Floats = vectors @ self.means.T - (vectors @ self.rivals.T).max(axis=-1, keepdims=True)
        return result


@dataclass(eq=False, repr=False, kw_only=True)
class AdaptedRouter(CascadeRouter):
    """A coe.core.Router over other categories than those of its heads. Thread-safe: never changed.

    `targets` (n_trained,) maps each trained category to its index in `categories`; `new` (n_new,) are the indices of
    the new categories. `exemplars` holds the projected vectors (n_texts, n_axes) of each new category's texts, and
    `digests` the texts' digests.
    """

    targets: NDArray[np.int64]
    new: NDArray[np.int64]
    static: NewCategories
    semantic: NewCategories
    exemplars: Sequence[Floats]
    digests: Sequence[Sequence[str]]

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]:
        """Return the nearest of the trained exemplars, with their categories mapped, and of the new categories'
        texts."""
        (vector,) = unit(self.knn.project(self.encoder.encode([text])))
        found = [
            Neighbour(self.categories[int(self.targets[label])], similarity, digest)
            for label, similarity, digest in self.knn.nearest(vector, limit=limit)
        ]
        for index, own, digests in zip(self.new, self.exemplars, self.digests, strict=True):
            found += map(partial(Neighbour, self.categories[int(index)]), (own @ vector).tolist(), digests)
        return sorted(found, key=lambda one: -one.similarity)[:limit]

    def fast_prediction(self, features: FastFeatures) -> Prediction:
        """As CascadeRouter.fast_prediction; a text is also uncertain if a new category may be near."""
        prediction = super().fast_prediction(features)
        odds = np.exp(STATIC_WEIGHT * self.static.margins(features.vector) + STATIC_BIAS)
        confidence = prediction.confidence / (1 + float(odds.sum()) * np.e**FAST_MARGIN_NATS)
        uncertain = confidence < self.ensemble.threshold and not features.other_script
        if prediction.stage != FAST_UNCERTAIN and uncertain:
            prediction = replace(prediction, stage=FAST_UNCERTAIN)
        return self._with_new_categories(prediction, odds)

    def encoder_predictions(self, outputs: HeadOutputs) -> list[Prediction]:
        nearest = np.zeros((len(outputs.vectors), len(self.new)), dtype=np.float32)
        for column, own in enumerate(self.exemplars):
            nearest[:, column] = (outputs.projected @ own.T).max(axis=1)
        logits = MEAN_WEIGHT * self.semantic.margins(outputs.vectors)
        logits += NEAREST_WEIGHT * (nearest - outputs.similarity[:, None]) + BIAS
        predictions = super().encoder_predictions(outputs)
        return [self._with_new_categories(*pair) for pair in zip(predictions, np.exp(logits), strict=True)]

    def multilingual_prediction(self, posterior: Floats, language: str) -> Prediction:
        prediction = super().multilingual_prediction(posterior, language)
        return self._with_new_categories(prediction, np.zeros(len(self.new), dtype=np.float32))

    def _with_new_categories(self, prediction: Prediction, odds: Floats) -> Prediction:
        """Map the posterior of the trained categories to the declared ones, and add the new ones at `odds` (n_new,)."""
        posterior = np.zeros(len(self.categories), dtype=np.float32)
        np.add.at(posterior, self.targets, prediction.probabilities)
        posterior[self.new] += odds
        total = 1 + float(odds.sum())
        in_distribution = 1 - (1 - prediction.in_distribution) / total
        return replace(prediction, probabilities=posterior / np.float32(total), in_distribution=in_distribution)


def adapt(base: CascadeRouter, declared: Mapping[str, Sequence[str]]) -> CascadeRouter:
    """Return `base` over the `declared` categories, which must include `general` and one trained category.

    A category that the base was not trained on needs one text or more; the texts of other categories are ignored.
    """
    if set(declared) == set(base.categories):
        return base
    categories = tuple(declared)
    new = [name for name in categories if name not in base.categories and declared[name]]
    kept = [index for index, name in enumerate(base.categories) if name in declared]
    vectors = [base.encoder.encode(declared[name]) for name in new]
    static = [np.stack([base.fast_heads(text).vector for text in declared[name]]) for name in new]
    static_means, encoder_means = base.static_centroids.means, base.category_means
    parts = {field.name: getattr(base, field.name) for field in fields(base) if field.name != "categories"}
    return AdaptedRouter(
        **parts,
        categories=categories,
        targets=np.array([categories.index(n if n in declared else GENERAL) for n in base.categories]),
        new=np.array([categories.index(name) for name in new], dtype=np.int64),
        static=NewCategories.of(static, static_means[kept], np.zeros_like(static_means[0])),
        semantic=NewCategories.of(vectors, encoder_means.means[kept], encoder_means.centre),
        exemplars=[unit(base.knn.project(own)) for own in vectors],
        digests=[[prompt_digest(text) for text in declared[name]] for name in new],
    )
