"""How likely a text is of a kind the router was trained on: its closeness to the training data, calibrated."""

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
"""Most centroids of static vectors, shared evenly among the categories; more would slow `predict_fast`."""
OUT_OF_SCOPE_SHARE = 0.03
"""Share of requests taken to be of unknown kind. Their number is not in the data; a higher one costs calibration."""


@dataclass(frozen=True, slots=True)
class InDistributionModel:
    """A logistic model over measures of closeness: `weights`, one a measure, and `bias`."""

    weights: tuple[float, ...]
    bias: float

    def of(self, similarity: Sequence[float]) -> float:
        """The probability of one text from its (n_measures,)."""
        return 1 / (1 + math.exp(-sum(map(operator.mul, self.weights, similarity)) - self.bias))

    def __call__(self, similarity: Floats) -> Floats:
        """Probabilities (n_texts,) from closeness (n_texts, n_measures)."""
        logit = similarity @ np.array(self.weights, dtype=np.float32) + np.float32(self.bias)
        result: Floats = 1 / (1 + np.exp(-logit))
        return result


@dataclass(frozen=True, slots=True)
class CategoryMeans:
    """The `centre` (dimensions,) of the exemplars in the encoder's space, and the unit mean of each category's as seen
    from there, `means` (n_categories, dimensions)."""

    centre: Floats
    means: Floats

    @classmethod
    def of(cls, vectors: Floats, labels: NDArray[np.int64], *, classes: int) -> Self:
        """From the exemplars' unit `vectors` (n_exemplars, dimensions)."""
        centre: Floats = vectors.mean(axis=0)
        return cls(centre, class_means(unit(vectors - centre), labels, classes=classes))

    def arrays(self) -> Arrays:
        return {"centre": self.centre, "means": self.means}


def fit_in_distribution_model(known: Floats, unknown: Floats) -> InDistributionModel:
    """From the closeness (n_texts, n_measures) of held-out texts, and of texts whose own category was left out."""
    from sklearn.linear_model import LogisticRegression

    labels = np.arange(len(known) + len(unknown)) < len(known)
    model = LogisticRegression(C=100, class_weight="balanced").fit(np.concatenate((known, unknown)), labels)
    prior = np.log((1 - OUT_OF_SCOPE_SHARE) / OUT_OF_SCOPE_SHARE)
    return InDistributionModel(weights=tuple(map(float, model.coef_[0])), bias=float(model.intercept_[0] + prior))


def fit_centroids(vectors: Floats, labels: NDArray[np.int64], *, seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Unit-length k-means centroids (n_centroids, dimensions) of every category, and their labels (n_centroids,)."""
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
    """The mean of every category's unit `vectors` (n_texts, dimensions), made unit length: (classes, dimensions)."""
    return np.stack([unit_mean(vectors[labels == label]) for label in range(classes)])


def unit(vectors: Floats) -> Floats:
    """`vectors` (n_texts, dimensions), made unit length."""
    result: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(1e-9))
    return result


def unit_mean(vectors: Floats) -> Floats:
    """The mean of `vectors` (n_texts, dimensions), made unit length; zero where they cancel or there are none."""
    total: Floats = vectors.sum(axis=0)
    length = float(total @ total) ** 0.5
    return total / np.float32(length) if length else total
