"""A nearest-neighbour head: cosine kNN with similarity weights; it also tells how close a text is to the training.

Neighbours are looked for in fewer dimensions than the encoder's: a look begins with cold caches, where the time goes by
the bytes that are read, and what the last principal axes tell of closeness is mostly noise
(docs/experiments/neighbour-projection.md). That a text
lies outside of them tells that it is of another kind, most of all where few exemplars span few: to exemplars it is as
far as if that were one more axis, along which none of them lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from routers.files import Arrays
from routers.heads.in_distribution import unit

NEIGHBOURS = 20
SHARPNESS = 15.0
"""Neighbours weigh exp(SHARPNESS * cosine)."""
SIMILARITY_NEIGHBOURS = 3
"""Exemplars whose mean cosine says how close a text is to the training data."""
VOTE_SMOOTHING = 0.02
"""Added to every category's share of the votes, so that a logarithm exists."""
MAX_AXES = 128
"""Most principal axes that are kept."""
MIN_RELATIVE_SINGULAR_VALUE = 1e-2
"""Part of the first axis' singular value that another's must be: one that tells two exemplars apart that are nearly the
same would be so wide, made even, that by what lies outside every text were far from all."""
WHITENING_EXPONENT = 0.25
"""Axes are divided by this power of their singular values, which keeps the first few from drowning the others."""


@dataclass(frozen=True, slots=True)
class KnnHead:
    """Unit `vectors` (n_exemplars, n_axes) along `axes` (dimensions, n_axes) of the encoder's space, their `labels`,
    the number of `classes`, and the digests of their texts where they are known; `widths` (n_axes,) of the axes."""

    axes: NDArray[np.float32]
    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    digests: tuple[str, ...] = ()
    widths: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", np.linalg.norm(self.axes, axis=0))

    def place(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The encoder's vectors (n_texts, dimensions) along the axes (n_texts, n_axes): of unit length, less what lies
        outside."""
        along = vectors @ self.axes
        outside = np.maximum(1 - np.square(along / self.widths).sum(axis=1), 0) * self.widths.max(initial=0) ** 2
        length = np.sqrt(np.square(along).sum(axis=1) + outside)
        placed: NDArray[np.float32] = along / np.maximum(length, np.float32(1e-9))[:, None]
        return placed

    def look(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log votes (n_texts, classes) and the mean cosine to the CLOSEST exemplars (n_texts,), of what is placed."""
        cosines = queries @ self.vectors.T
        k, few = min(NEIGHBOURS, len(self.vectors)), min(SIMILARITY_NEIGHBOURS, len(self.vectors))
        nearest = cosines.argpartition(-k, axis=1)[:, -k:]
        near = np.take_along_axis(cosines, nearest, axis=1)
        weights = np.exp(SHARPNESS * (near - near.max(axis=1, keepdims=True)))
        cells = self.labels[nearest] + self.classes * np.arange(len(queries))[:, None]
        votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(queries) * self.classes)
        shares = votes.reshape(len(queries), self.classes) / weights.sum(axis=1, keepdims=True)
        similarity = np.partition(near, -few, axis=1)[:, -few:].mean(axis=1)
        return np.log(shares + VOTE_SMOOTHING).astype(np.float32), similarity

    def nearest(self, vector: NDArray[np.float32], *, limit: int) -> list[tuple[int, float, str]]:
        """Label, cosine and digest of the exemplars nearest to one that is placed (n_axes,), the nearest first."""
        cosines = self.vectors @ vector
        order = np.argsort(-cosines)[:limit].tolist()
        return [(int(self.labels[i]), float(cosines[i]), self.digests[i] if self.digests else "") for i in order]

    def without(self, label: int) -> KnnHead:
        """The same without the exemplars of one category."""
        others = self.labels != label
        return replace(self, vectors=self.vectors[others], labels=self.labels[others], digests=())

    def arrays(self) -> Arrays:
        return {"axes": self.axes, "vectors": self.vectors, "labels": self.labels.astype(np.int32)}


def fit_knn(vectors: NDArray[np.float32], labels: NDArray[np.int64], *, classes: int) -> KnnHead:
    """The exemplars' `vectors` (n_exemplars, dimensions) along their principal axes, not centred."""
    _, spread, principal = np.linalg.svd(vectors, full_matrices=False)
    kept = min(MAX_AXES, int((spread > spread[0] * MIN_RELATIVE_SINGULAR_VALUE).sum()))
    axes = np.ascontiguousarray(principal[:kept].T / spread[:kept] ** WHITENING_EXPONENT, dtype=np.float32)
    head = KnnHead(axes, vectors, labels, classes)
    return replace(head, vectors=unit(head.place(vectors)))


def sample_exemplars(labels: NDArray[np.int64], *, each: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of at most `each` examples of every label, drawn at random."""
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
