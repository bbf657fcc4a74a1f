"""Fit the four heads: choose regularization, score held-out texts by cross-fitting, and write the served tables.

Two divisions into folds simulate two kinds of traffic. Random folds (`folds`) hold texts like those of training.
`topic_folds` hold whole topics, so their texts are as unfamiliar as those of users whom training has not met.
Out-of-scope texts are simulated too: each held-out text is scored a second time with its own category left out, as if
it belonged to a category that training has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats, fit_temperature, log_loss
from routers.cascade import LEXICAL, SEMANTIC, STATIC
from routers.files import write_arrays
from routers.heads.fast import StaticVectors, fit_centroids
from routers.heads.lexical import LexicalFeatures, LexicalHead, LexicalMatrix, fit_lexical
from routers.heads.semantic import (
    CategoryMeans,
    KnnHead,
    LinearHead,
    class_means,
    fit_knn,
    fit_linear,
    sample_exemplars,
)

Labels = NDArray[np.int64]
TRAINED_HEADS = ("lexical", "static", "linear")
"""The heads, as in Regularization and HeadScores."""
FOLDS = 5
MAX_EXEMPLARS = 6000
"""Exemplars of the kNN head, shared evenly among the categories."""
REGULARIZATION_GRID = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Values of scikit-learn's C (inverse regularization) to choose from."""
SEED = 0
"""Seed of all random divisions, so that the same texts give the same router."""
KNN_BATCH_TEXTS = 1000
"""Texts scored against the exemplars at a time, which limits the matrix of cosines."""
EXCLUDED_LOGIT = -1e4
"""Logit of a category that is left out."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Inputs of every head. The linear head uses all columns of the encoder's `embeddings`, the kNN head the sentence
    vectors, which are the first `dimensions` columns."""

    labels: Labels
    classes: int
    features: LexicalFeatures
    lexical: LexicalMatrix
    tokens: StaticVectors
    static: Floats
    embeddings: Floats
    dimensions: int

    @property
    def vectors(self) -> Floats:
        return self.embeddings[:, : self.dimensions]


@dataclass(frozen=True, slots=True)
class Regularization:
    """scikit-learn's C (inverse regularization) of each trained head."""

    lexical: float
    static: float
    linear: float


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Logits (n_texts, n_categories) of every head on some texts, and the texts' similarity to the training data.

    `fast_similarity` (n_texts, 2) is the input of the fast stage's in-distribution model, `similarity` (n_texts,) of
    the encoder stage's.
    """

    lexical: Floats
    static: Floats
    linear: Floats
    knn: Floats
    fast_similarity: Floats
    similarity: Floats

    @property
    def heads(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.lexical, self.static, self.linear, self.knn

    @classmethod
    def joined(cls, parts: Sequence[HeadScores], order: Labels) -> HeadScores:
        """Return the scores of all parts' texts in this order."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts])[order] for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Scores of texts by heads that were not fitted on them: `in_scope` as they are, and `out_of_scope` with each
    text's own category left out of the heads."""

    in_scope: HeadScores
    out_of_scope: HeadScores


def folds(labels: Labels) -> list[tuple[Labels, Labels]]:
    """Return stratified folds as (rest, held) indices. A class of two or more is present in every rest."""
    shuffled = np.random.default_rng(SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % FOLDS
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(min(FOLDS, len(labels)))]


def topic_folds(vectors: Floats, labels: Labels) -> list[tuple[Labels, Labels]]:
    """Return folds as (rest, held) indices, each of which holds one topic of every class.

    The topics of a class are FOLDS k-means clusters of its `vectors` (n_texts, dimensions). A class of too few distinct
    vectors is divided at random. A class of two or more texts is present in every rest.
    """
    from sklearn.cluster import KMeans

    fold = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        count = min(FOLDS, len(np.unique(vectors[own], axis=0)))
        topics = (
            KMeans(count, n_init=1, random_state=SEED).fit(vectors[own]).labels_ if count > 1 else np.arange(len(own))
        )
        fold[own] = topics % FOLDS
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in np.unique(fold)]


def choose_regularization(data: TrainingData) -> Regularization:
    """Return the C of each head with the lowest log loss (temperature fitted) on one fold."""
    rest, held = folds(data.labels)[0]
    labels = data.labels[held]

    def loss(head: str, c: float) -> float:
        logits = _trained_logits(head, data, rest, held, c)
        return log_loss(logits / np.float32(fit_temperature(logits, labels)), labels)

    return Regularization(
        *(min(REGULARIZATION_GRID, key=lambda c, head=head: loss(head, c)) for head in TRAINED_HEADS)  # type: ignore[misc]
    )


def _trained_logits(head: str, data: TrainingData, rest: Labels, held: Labels, c: float) -> Floats:
    if head == "lexical":
        fitted = _fit_lexical(data, rest, c)
        weights = np.concatenate((fitted.weights, fitted.dense))
        logits: Floats = data.lexical.matrix[held] @ weights + fitted.bias
        return logits
    vectors = data.static if head == "static" else data.embeddings
    return _fit_linear(vectors, data, rest, c).logits(vectors[held])


def cross_fit(
    data: TrainingData,
    regularization: Regularization,
    parts: Sequence[tuple[Labels, Labels]],
    *,
    report: Callable[[float], None],
) -> HeldOutScores:
    """Score every text by heads that were fitted on the other folds of `parts`."""
    scores = list[HeldOutScores]()
    for fold in parts:
        scores.append(_score_fold(data, regularization, fold))
        report(len(scores) / len(parts))
    order = np.argsort(np.concatenate([held for _, held in parts]))
    return HeldOutScores(
        in_scope=HeadScores.joined([part.in_scope for part in scores], order),
        out_of_scope=HeadScores.joined([part.out_of_scope for part in scores], order),
    )


def _score_fold(data: TrainingData, regularization: Regularization, fold: tuple[Labels, Labels]) -> HeldOutScores:
    """Return the scores of the held texts, by heads that were fitted on the rest."""
    rest, held = fold
    own = np.arange(len(held)), data.labels[held]
    inside = {head: _trained_logits(head, data, rest, held, getattr(regularization, head)) for head in TRAINED_HEADS}
    outside = {head: logits.copy() for head, logits in inside.items()}
    inside["knn"], similarity, outside["knn"], other_similarity = _score_knn(data, _fit_knn(data, rest), held)
    for logits in outside.values():
        logits[own] = EXCLUDED_LOGIT
    fast, other_fast = _fast_similarity(data, rest, held)
    return HeldOutScores(
        in_scope=HeadScores(**inside, fast_similarity=fast, similarity=similarity),
        out_of_scope=HeadScores(**outside, fast_similarity=other_fast, similarity=other_similarity),
    )


def _score_knn(data: TrainingData, knn: KnnHead, held: Labels) -> tuple[Floats, Floats, Floats, Floats]:
    """Return votes and similarity of the held texts, then both without the exemplars of each text's own category."""
    votes, similarity = _knn_scores(knn, data.vectors[held])
    other_votes, other_similarity = np.empty_like(votes), np.empty_like(similarity)
    for label in range(data.classes):
        own = data.labels[held] == label
        if own.any():
            other_votes[own], other_similarity[own] = _knn_scores(knn.without(label), data.vectors[held[own]])
    return votes, similarity, other_votes, other_similarity


def _knn_scores(knn: KnnHead, vectors: Floats) -> tuple[Floats, Floats]:
    starts = range(0, len(vectors), KNN_BATCH_TEXTS)
    votes, similarity = zip(*(knn.score(knn.project(vectors[i : i + KNN_BATCH_TEXTS])) for i in starts), strict=True)
    return np.concatenate(votes), np.concatenate(similarity)


def _fast_similarity(data: TrainingData, rest: Labels, held: Labels) -> tuple[Floats, Floats]:
    """Return the fast stage's similarities (n_held, 2) of the held texts, and those without each own category."""
    inside, outside = np.zeros((2, len(held), 2), dtype=np.float32)
    centroids, labels = fit_centroids(data.static[rest], data.labels[rest])
    cosines = data.static[held] @ centroids.T
    inside[:, 0] = cosines.max(axis=1)
    cosines[data.labels[held][:, None] == labels] = -1
    outside[:, 0] = cosines.max(axis=1)
    frequency = data.lexical.document_frequency(rest)
    inside[:, 1] = data.lexical.known_share(held, frequency)
    for label in range(data.classes):
        own = data.labels[held] == label
        others = frequency - data.lexical.document_frequency(rest[data.labels[rest] == label])
        outside[own, 1] = data.lexical.known_share(held[own], others)
    return inside, outside


def write_heads(data: TrainingData, regularization: Regularization, *, out: Path) -> None:
    """Fit every head on all texts and write its table."""
    rows = np.arange(len(data.labels))
    linear = _fit_linear(data.embeddings, data, rows, regularization.linear)
    static = _fit_linear(data.static, data, rows, regularization.static)
    write_arrays(out / LEXICAL, _fit_lexical(data, rows, regularization.lexical).arrays())
    centroids, _ = fit_centroids(data.static, data.labels)
    means = class_means(data.static, data.labels, classes=data.classes)
    write_arrays(out / STATIC, {**data.tokens.arrays(), **static.arrays(), "centroids": centroids, "means": means})
    exemplars = exemplar_rows(data, rows)
    encoder_means = CategoryMeans.of(data.vectors[exemplars], data.labels[exemplars], classes=data.classes)
    knn = _fit_knn(data, rows)
    write_arrays(out / SEMANTIC, {**linear.arrays(), **knn.arrays(), **encoder_means.arrays()})


def exemplar_rows(data: TrainingData, rows: Labels) -> Labels:
    """Return the rows that the kNN head keeps as exemplars, in its order."""
    each = max(1, MAX_EXEMPLARS // data.classes)
    return rows[sample_exemplars(data.labels[rows], each=each, rng=np.random.default_rng(SEED))]


def _fit_lexical(data: TrainingData, rows: Labels, c: float) -> LexicalHead:
    part = LexicalMatrix(matrix=data.lexical.matrix[rows], idf=data.lexical.idf)
    return fit_lexical(part, data.labels[rows], data.features, c=c, classes=data.classes)


def _fit_linear(vectors: Floats, data: TrainingData, rows: Labels, c: float) -> LinearHead:
    return fit_linear(vectors[rows], data.labels[rows], c=c, classes=data.classes)


def _fit_knn(data: TrainingData, rows: Labels) -> KnnHead:
    exemplars = exemplar_rows(data, rows)
    return fit_knn(data.vectors[exemplars], data.labels[exemplars], classes=data.classes)
