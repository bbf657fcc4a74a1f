"""A nearest-neighbour head: cosine kNN with similarity weights; it also tells how close a text is to the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.files import Arrays

NEIGHBOURS = 20
SHARPNESS = 15.0
"""Neighbours weigh exp(SHARPNESS * cosine)."""
CLOSEST = 3
"""Exemplars whose mean cosine says how close a text is to the training data."""
PRIOR = 0.02
"""Added to every category's share of the votes, so that a logarithm exists."""


@dataclass(frozen=True, slots=True)
class KnnHead:
    """Unit `vectors` (n_exemplars, dimensions), their `labels`, the number of `classes`, and the digests of their texts
    where they are known."""

    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    digests: tuple[str, ...] = ()

    def look(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log votes (n_texts, classes) and the mean cosine to the CLOSEST exemplars (n_texts,)."""
        cosines = queries @ self.vectors.T
        k, few = min(NEIGHBOURS, len(self.vectors)), min(CLOSEST, len(self.vectors))
        nearest = cosines.argpartition(-k, axis=1)[:, -k:]
        near = np.take_along_axis(cosines, nearest, axis=1)
        weights = np.exp(SHARPNESS * (near - near.max(axis=1, keepdims=True)))
        cells = self.labels[nearest] + self.classes * np.arange(len(queries))[:, None]
        votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(queries) * self.classes)
        shares = votes.reshape(len(queries), self.classes) / weights.sum(axis=1, keepdims=True)
        closeness = np.partition(near, -few, axis=1)[:, -few:].mean(axis=1)
        return np.log(shares + PRIOR).astype(np.float32), closeness

    def nearest(self, vector: NDArray[np.float32], *, limit: int) -> list[tuple[int, float, str]]:
        """Label, cosine to a unit vector (dimensions,) and digest of the exemplars nearest to it, the nearest first."""
        cosines = self.vectors @ vector
        order = np.argsort(-cosines)[:limit].tolist()
        return [(int(self.labels[i]), float(cosines[i]), self.digests[i] if self.digests else "") for i in order]

    def without(self, label: int) -> KnnHead:
        """The same without the exemplars of one category."""
        others = self.labels != label
        return KnnHead(self.vectors[others], self.labels[others], self.classes)

    def arrays(self) -> Arrays:
        return {"vectors": self.vectors, "labels": self.labels.astype(np.int32)}


def choose_exemplars(labels: NDArray[np.int64], *, each: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of at most `each` examples of every label, drawn at random."""
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
