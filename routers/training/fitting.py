"""Fitting the four heads: their regularisation, what they say of texts not learned from, and the served tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats, fit_temperature, log_loss
from routers.cascade import LEXICAL, SEMANTIC, STATIC
from routers.files import write_arrays
from routers.heads.in_distribution import CategoryMeans, class_means, fit_centroids
from routers.heads.knn import KnnHead, fit_knn, sample_exemplars
from routers.heads.lexical import LexicalFeatures, LexicalHead, LexicalMatrix, fit_lexical
from routers.heads.linear import LinearHead, fit_linear
from routers.heads.static import StaticVectors
from routers.training.parallel import TaskRunner

Labels = NDArray[np.int64]
HEADS = ("lexical", "static", "linear")
"""The trained heads, as Strengths and Views name them."""
FOLDS = 5
MAX_EXEMPLARS = 6000
"""Most exemplars that the kNN head keeps, shared evenly among the categories."""
REGULARIZATION_GRID = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularisations to choose from."""
KNN_BATCH_TEXTS = 1000
"""Texts whose neighbours are looked up at a time: bounds the matrix of cosines."""
EXCLUDED_LOGIT = -1e4
"""Logit of a category that is left out."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """A training set as the heads see it: the linear one sees the encoder's `embeddings`, the neighbours the sentence
    vectors, their first `dimensions` columns, alone."""

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
    """The inverse regularisation of each trained head."""

    lexical: float
    static: float
    linear: float


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Every head's logits (n_texts, n_categories) on some texts, and how close those are to the training data.

    `near` (n_texts, 2) is what the cheap stage sees of closeness, `similarity` (n_texts,) what the full stage sees.
    """

    lexical: Floats
    static: Floats
    linear: Floats
    knn: Floats
    near: Floats
    similarity: Floats

    @property
    def heads(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.lexical, self.static, self.linear, self.knn

    def part(self, rows: Labels) -> HeadScores:
        """The views of some of the texts."""
        return HeadScores(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def take(self, rows: Labels, part: HeadScores) -> None:
        """Fill in the views of these texts."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(part, field.name)

    @classmethod
    def blank(cls, texts: int, classes: int) -> HeadScores:
        lexical, static, linear, knn = (np.zeros((texts, classes), dtype=np.float32) for _ in range(4))
        near, similarity = np.zeros((texts, 2), dtype=np.float32), np.zeros(texts, dtype=np.float32)
        return cls(lexical=lexical, static=static, linear=linear, knn=knn, near=near, similarity=similarity)


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """The heads' views of texts that they did not learn from.

    `known` are those texts as they are. `unknown` are the same as if their own category were not among the known ones:
    stand-ins for texts of kinds that training has not met.
    """

    known: HeadScores
    unknown: HeadScores


def folds(labels: Labels, *, seed: int) -> list[tuple[Labels, Labels]]:
    """(rest, held) indices, every class spread evenly; a class of two or more is present in every rest."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % FOLDS
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(min(FOLDS, len(labels)))]


def choose_regularization(data: TrainingData, *, seed: int, work: TaskRunner) -> Regularization:
    """Those with the least log loss, temperature fitted, on one fold."""
    fold = folds(data.labels, seed=seed)[0]
    trials = [(head, strength) for head in HEADS for strength in REGULARIZATION_GRID]
    losses = np.array(list(work.map(partial(_trial, data, fold), trials))).reshape(len(HEADS), len(REGULARIZATION_GRID))
    return Regularization(*(REGULARIZATION_GRID[best] for best in losses.argmin(axis=1)))


def _trial(data: TrainingData, fold: tuple[Labels, Labels], trial: tuple[str, float]) -> float:
    """The log loss of one head at one strength."""
    (rest, held), (head, strength) = fold, trial
    return _loss(_trained_logits(head, data, rest, held, strength), data.labels[held])


def _trained_logits(head: str, data: TrainingData, rest: Labels, held: Labels, strength: float) -> Floats:
    if head == "lexical":
        return _lexical_logits(_lexical(data, rest, strength), data, held)
    vectors = data.static if head == "static" else data.embeddings
    return _linear(vectors, data, rest, strength).logits(vectors[held])


def cross_fit(
    data: TrainingData, strengths: Regularization, *, seed: int, work: TaskRunner, report: Callable[[float], None]
) -> HeldOutScores:
    """What every head says of texts it did not learn from, over folds."""
    found = HeldOutScores(*(HeadScores.blank(len(data.labels), data.classes) for _ in range(2)))
    parts = folds(data.labels, seed=seed)
    for index, part in enumerate(work.map(partial(_fold, data, strengths, seed), parts)):
        held = parts[index][1]
        found.known.take(held, part.known)
        found.unknown.take(held, part.unknown)
        report((index + 1) / FOLDS)
    return found


def _fold(data: TrainingData, strengths: Regularization, seed: int, fold: tuple[Labels, Labels]) -> HeldOutScores:
    """The views of the held texts alone."""
    found = HeldOutScores(*(HeadScores.blank(len(data.labels), data.classes) for _ in range(2)))
    rest, held = fold
    _view_trained(found, data, strengths, rest, held)
    _view_neighbours(found, data, _knn(data, rest, seed=seed), held)
    _view_near(found, data, rest, held, seed=seed)
    return HeldOutScores(found.known.part(held), found.unknown.part(held))


def _view_trained(
    found: HeldOutScores, data: TrainingData, strengths: Regularization, rest: Labels, held: Labels
) -> None:
    """Logits of the trained heads; a stand-in's are those of the other categories."""
    for head in HEADS:
        getattr(found.known, head)[held] = _trained_logits(head, data, rest, held, getattr(strengths, head))
    for known, unknown in zip(found.known.heads[:3], found.unknown.heads[:3], strict=True):
        unknown[held] = known[held]
        unknown[held, data.labels[held]] = EXCLUDED_LOGIT


def _view_neighbours(found: HeldOutScores, data: TrainingData, knn: KnnHead, held: Labels) -> None:
    for start in range(0, len(held), KNN_BATCH_TEXTS):
        block = held[start : start + KNN_BATCH_TEXTS]
        found.known.knn[block], found.known.similarity[block] = knn.look(knn.place(data.vectors[block]))
    for label in range(data.classes):
        others = knn.without(label)
        own = held[data.labels[held] == label]
        for start in range(0, len(own), KNN_BATCH_TEXTS):
            block = own[start : start + KNN_BATCH_TEXTS]
            placed = others.place(data.vectors[block])
            found.unknown.knn[block], found.unknown.similarity[block] = others.look(placed)
            found.unknown.knn[block, label] = EXCLUDED_LOGIT


def _view_near(found: HeldOutScores, data: TrainingData, rest: Labels, held: Labels, *, seed: int) -> None:
    means, labels = fit_centroids(data.static[rest], data.labels[rest], seed=seed)
    cosines = data.static[held] @ means.T
    found.known.near[held, 0] = cosines.max(axis=1)
    cosines[data.labels[held][:, None] == labels] = -1
    found.unknown.near[held, 0] = cosines.max(axis=1)
    counts = data.lexical.counts(rest)
    found.known.near[held, 1] = data.lexical.known_share(held, counts)
    for label in range(data.classes):
        own = held[data.labels[held] == label]
        others = counts - data.lexical.counts(rest[data.labels[rest] == label])
        found.unknown.near[own, 1] = data.lexical.known_share(own, others)


def write_heads(data: TrainingData, strengths: Regularization, *, out: Path, seed: int) -> None:
    """Fit every head on all texts and write its table."""
    everything = np.arange(len(data.labels))
    linear = _linear(data.embeddings, data, everything, strengths.linear)
    static = _linear(data.static, data, everything, strengths.static)
    write_arrays(out / LEXICAL, _lexical(data, everything, strengths.lexical).arrays())
    means, _ = fit_centroids(data.static, data.labels, seed=seed)
    own = class_means(data.static, data.labels, classes=data.classes)
    write_arrays(out / STATIC, {**data.tokens.arrays(), **static.arrays(), "centroids": means, "means": own})
    kept = exemplar_rows(data, everything, seed=seed)
    knn = fit_knn(data.vectors[kept], data.labels[kept], classes=data.classes)
    middles = CategoryMeans.of(data.vectors[kept], data.labels[kept], classes=data.classes)
    write_arrays(out / SEMANTIC, {**linear.arrays(), **knn.arrays(), **middles.arrays()})


def exemplar_rows(data: TrainingData, rows: Labels, *, seed: int) -> Labels:
    """Which of the rows the nearest-neighbour head keeps, in its order."""
    each = max(1, MAX_EXEMPLARS // data.classes)
    return rows[sample_exemplars(data.labels[rows], each=each, rng=np.random.default_rng(seed))]


def held_out_correct(embeddings: Floats, labels: Labels, *, seed: int) -> NDArray[np.bool_]:
    """Which texts a linear head on `embeddings` gets right, over folds."""
    names, labels = np.unique(labels, return_inverse=True)
    right = np.zeros(len(labels), dtype=bool)
    for rest, held in folds(labels, seed=seed):
        head = fit_linear(embeddings[rest], labels[rest], strength=3.0, classes=len(names))
        right[held] = head.logits(embeddings[held]).argmax(axis=1) == labels[held]
    return right


def _lexical(data: TrainingData, rows: Labels, strength: float) -> LexicalHead:
    part = LexicalMatrix(matrix=data.lexical.matrix[rows], idf=data.lexical.idf)
    return fit_lexical(part, data.labels[rows], data.features, strength=strength, classes=data.classes)


def _lexical_logits(head: LexicalHead, data: TrainingData, rows: Labels) -> Floats:
    logits: Floats = data.lexical.matrix[rows] @ np.concatenate((head.weights, head.traits)) + head.bias
    return logits


def _linear(vectors: Floats, data: TrainingData, rows: Labels, strength: float) -> LinearHead:
    return fit_linear(vectors[rows], data.labels[rows], strength=strength, classes=data.classes)


def _knn(data: TrainingData, rows: Labels, *, seed: int) -> KnnHead:
    chosen = exemplar_rows(data, rows, seed=seed)
    return fit_knn(data.vectors[chosen], data.labels[chosen], classes=data.classes)


def _loss(logits: Floats, labels: Labels) -> float:
    return log_loss(logits / np.float32(fit_temperature(logits, labels)), labels)
