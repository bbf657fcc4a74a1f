"""Heads on sentence vectors: a linear one and a nearest-neighbour one, and the means of categories.

`LinearHead` is a multinomial logistic regression; it also serves the static vectors of `routers.heads.fast`. `KnnHead`
votes by cosine with similarity weights, and measures how similar a text is to the training data.

For kNN, vectors are projected to the exemplars' principal axes. A query starts with cold caches, where time is
proportional to the bytes read, and the last axes carry mostly noise (docs/experiments/cascade-and-encoders.md). The
part of a text outside these axes counts as one more axis on which no exemplar lies, so it lowers the similarity.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats
from routers.files import Arrays

NEIGHBOURS = 20
SHARPNESS = 15.0
"""Neighbours weigh exp(SHARPNESS * cosine)."""
EXEMPLAR_STEP = 1 / 256
"""Written exemplars are multiples of this, so that they compress to half; a cosine changes by 0.0016
(docs/experiments/router-training.md)."""
SIMILARITY_NEIGHBOURS = 3
"""A text's similarity to the training data is the mean cosine to this many nearest exemplars."""
VOTE_SMOOTHING = 0.02
"""Added to every category's share of the votes, so that its logarithm is finite."""
MAX_AXES = 128
MIN_RELATIVE_SINGULAR_VALUE = 1e-2
"""Axes with a smaller singular value, relative to the first, are dropped. Whitening would scale up an axis that only
separates two near-duplicate exemplars so far that every text would lie outside."""
WHITENING_EXPONENT = 0.25
"""Axes are divided by this power of their singular values, so that the first few do not dominate."""


@dataclass(frozen=True, slots=True)
class KnnHead:
    """Exemplars: unit `vectors` (n_exemplars, n_axes) along `axes` (dimensions, n_axes) of the encoder's space, their
    `labels` among `classes`, and the `digests` of their texts. `axis_norms` (n_axes,) are the lengths of the axes."""

    axes: NDArray[np.float32]
    vectors: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: int
    digests: tuple[str, ...] = ()
    axis_norms: NDArray[np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # column by column: the product with one text then takes two thirds of the time with cold caches
        object.__setattr__(self, "vectors", np.asfortranarray(self.vectors))
        object.__setattr__(self, "axis_norms", np.linalg.norm(self.axes, axis=0))

    def project(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Project unit vectors (n_texts, dimensions) to the axes: (n_texts, n_axes), of unit length together with the
        component outside the axes, which is dropped."""
        along = vectors @ self.axes
        inside = np.square(along / self.axis_norms).sum(axis=1)
        outside = np.maximum(1 - inside, 0) * self.axis_norms.max(initial=0) ** 2
        length = np.sqrt(np.square(along).sum(axis=1) + outside)
        projected: NDArray[np.float32] = along / np.maximum(length, np.float32(1e-9))[:, None]
        return projected

    def score(self, projected: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return log vote shares (n_texts, classes) and similarities (n_texts,) of projected vectors."""
        cosines = projected @ self.vectors.T
        k, few = min(NEIGHBOURS, len(self.vectors)), min(SIMILARITY_NEIGHBOURS, len(self.vectors))
        rows = np.arange(len(projected))[:, None]
        nearest = cosines.argpartition(-k, axis=1)[:, -k:]
        near = cosines[rows, nearest]
        weights = np.exp(SHARPNESS * (near - near.max(axis=1, keepdims=True)))
        cells = self.labels[nearest] + self.classes * rows
        votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(projected) * self.classes)
        shares = votes.reshape(len(projected), self.classes) / weights.sum(axis=1, keepdims=True)
        near.partition(-few, axis=1)
        similarity = near[:, -few:].mean(axis=1)
        return np.log(shares + VOTE_SMOOTHING).astype(np.float32), similarity

    def nearest(self, projected: NDArray[np.float32], *, limit: int) -> list[tuple[int, float, str]]:
        """Return label, cosine and digest of the exemplars nearest to one projected vector (n_axes,), nearest first."""
        cosines = self.vectors @ projected
        order = np.argsort(-cosines)[:limit].tolist()
        return [(int(self.labels[i]), float(cosines[i]), self.digests[i] if self.digests else "") for i in order]

    def without(self, label: int) -> KnnHead:
        """Return a copy without the exemplars of one category."""
        others = self.labels != label
        return replace(self, vectors=self.vectors[others], labels=self.labels[others], digests=())

    def arrays(self) -> Arrays:
        """Return the table to write, with `vectors` rounded to multiples of EXEMPLAR_STEP."""
        rounded = np.rint(np.ascontiguousarray(self.vectors) / np.float32(EXEMPLAR_STEP)) * np.float32(EXEMPLAR_STEP)
        return {"axes": self.axes, "vectors": rounded, "labels": self.labels.astype(np.int32)}


def fit_knn(vectors: NDArray[np.float32], labels: NDArray[np.int64], *, classes: int) -> KnnHead:
    """Build the head from exemplars' unit `vectors` (n_exemplars, dimensions) by an SVD, not centred."""
    _, singular, principal = np.linalg.svd(vectors, full_matrices=False)
    kept = min(MAX_AXES, int((singular > singular[0] * MIN_RELATIVE_SINGULAR_VALUE).sum()))
    axes = np.ascontiguousarray(principal[:kept].T / singular[:kept] ** WHITENING_EXPONENT, dtype=np.float32)
    head = KnnHead(axes, vectors, labels, classes)
    return replace(head, vectors=unit(head.project(vectors)))


def sample_exemplars(labels: NDArray[np.int64], *, each: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the sorted indices of at most `each` random examples of every label."""
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


ABSENT_CATEGORY_LOGIT = -100.0
"""Logit of a category without training texts."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Maps vectors to logits linearly: `weights` (dimensions, n_categories) and `bias` (n_categories,), float32."""

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits (n_texts, n_categories), or (n_categories,) for one vector."""
        return vectors @ self.weights + self.bias

    def arrays(self) -> Arrays:
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(weights=arrays["weights"], bias=arrays["bias"])


def fit_linear(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], *, c: float, classes: int, tolerance: float = 1e-3
) -> LinearHead:
    """Fit the head on `vectors` (n_texts, dimensions), classes balanced; `c` is scikit-learn's C.

    `labels` are 0 to classes - 1. A label that does not occur is never predicted.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, class_weight="balanced", max_iter=1000, tol=tolerance).fit(vectors, labels)
    weights, bias = model.coef_.T, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn returns one column for two classes
        weights, bias = np.hstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    head = LinearHead(
        weights=np.zeros((vectors.shape[1], classes), dtype=np.float32),
        bias=np.full(classes, ABSENT_CATEGORY_LOGIT, dtype=np.float32),
    )
    head.weights[:, model.classes_] = weights
    head.bias[model.classes_] = bias
    return head


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
