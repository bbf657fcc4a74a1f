"""In-distribution probability: how likely a text is of a kind that the router was trained on.

A logistic model over the text's similarity to the training data. It is fitted on held-out texts, against texts whose
own category was left out of training. This module also holds the means and centroids that similarity is measured to.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats
from routers.files import Arrays

MAX_CENTROIDS = 512
"""Centroids of static vectors, shared evenly among the categories; more would slow `predict_fast`."""
OUT_OF_SCOPE_SHARE = 0.03
"""Assumed share of out-of-scope requests, which the data do not show. A higher value costs calibration."""


@dataclass(frozen=True, slots=True)
class InDistributionModel:
    """A logistic model over similarity features: one of `weights` for each feature, and `bias`."""

    weights: tuple[float, ...]
    bias: float

    def of(self, similarity: Sequence[float]) -> float:
        """Return the probability of one text from its features (n_features,)."""
        return 1 / (1 + math.exp(-sum(map(operator.mul, self.weights, similarity)) - self.bias))

    def __call__(self, similarity: Floats) -> Floats:
        """Return the probabilities (n_texts,) from features (n_texts, n_features)."""
        logit = similarity @ np.array(self.weights, dtype=np.float32) + np.float32(self.bias)
        result: Floats = 1 / (1 + np.exp(-logit))
        return result


@dataclass(frozen=True, slots=True)
class CategoryMeans:
    """Exemplars in the encoder's space: their `centre` (dimensions,), and each category's unit mean relative to it,
    `means` (n_categories, dimensions)."""

    centre: Floats
    means: Floats

    @classmethod
    def of(cls, vectors: Floats, labels: NDArray[np.int64], *, classes: int) -> Self:
        """Compute both from the exemplars' unit `vectors` (n_exemplars, dimensions)."""
        centre: Floats = vectors.mean(axis=0)
        return cls(centre, class_means(unit(vectors - centre), labels, classes=classes))

    def arrays(self) -> Arrays:
        return {"centre": self.centre, "means": self.means}


def fit_in_distribution_model(in_scope: Floats, out_of_scope: Floats) -> InDistributionModel:
    """Fit the model on the features (n_texts, n_features) of held-out texts in scope and out of scope."""
    from sklearn.linear_model import LogisticRegression

    labels = np.arange(len(in_scope) + len(out_of_scope)) < len(in_scope)
    model = LogisticRegression(C=100, class_weight="balanced").fit(np.concatenate((in_scope, out_of_scope)), labels)
    prior = np.log((1 - OUT_OF_SCOPE_SHARE) / OUT_OF_SCOPE_SHARE)
    return InDistributionModel(weights=tuple(map(float, model.coef_[0])), bias=float(model.intercept_[0] + prior))


def fit_centroids(vectors: Floats, labels: NDArray[np.int64], *, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return unit k-means centroids (n_centroids, dimensions) of every category, and their labels (n_centroids,)."""
    from sklearn.cluster import MiniBatchKMeans

    names = np.unique(labels)
    found = []
    for name in names:
        own = vectors[labels == name]
        count = max(1, min(MAX_CENTROIDS // len(names), len(own) // 2))
        means = MiniBatchKMeans(count, n_init=1, batch_size=1024, random_state=seed).fit(own).cluster_centers_
        found.append(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9))
    return np.concatenate(found).astype(np.float32), np.repeat(names, [len(means) for means in found])


def class_means(vectors: Floats, labels: NDArray[np.int64], *, classes: int) -> Floats:
    """Return the unit mean of each category's unit `vectors` (n_texts, dimensions): (classes, dimensions)."""
    return np.stack([unit_mean(vectors[labels == label]) for label in range(classes)])


def unit(vectors: Floats) -> Floats:
    """Scale `vectors` (n_texts, dimensions) to unit length."""
    result: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-9))
    return result


def unit_mean(vectors: Floats) -> Floats:
    """Return the mean of `vectors` (n_texts, dimensions) at unit length; zero if they cancel or there are none."""
    total: Floats = vectors.sum(axis=0)
    length = float(total @ total) ** 0.5
    return total / np.float32(length) if length else total
