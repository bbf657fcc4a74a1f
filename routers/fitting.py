"""Fitting the four heads: their regularisation, their held-out logits, and the tables that are served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats, fit_temperature, log_loss
from routers.cascade import LEXICAL, SEMANTIC, STATIC
from routers.distill import StaticVectors
from routers.files import write_arrays
from routers.knn import KnnHead, choose_exemplars
from routers.lexical import LexicalFeatures, LexicalHead, LexicalMatrix, fit_lexical
from routers.linear import LinearHead, fit_linear

Labels = NDArray[np.int64]
FOLDS = 5
EXEMPLARS = 6000
"""Most exemplars that the kNN head keeps, shared evenly among the categories."""
STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse regularisations to choose from."""
BLOCK = 1000
"""Texts whose neighbours are looked up at a time: bounds the matrix of cosines."""


@dataclass(frozen=True, slots=True)
class Data:
    """A training set as the heads see it."""

    labels: Labels
    classes: int
    features: LexicalFeatures
    lexical: LexicalMatrix
    tokens: StaticVectors
    static: Floats
    vectors: Floats


@dataclass(frozen=True, slots=True)
class Strengths:
    """The inverse regularisation of each trained head."""

    lexical: float
    static: float
    linear: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Every head's logits (n_texts, n_categories), and familiarity (n_texts,), on texts it did not learn from."""

    lexical: Floats
    static: Floats
    linear: Floats
    knn: Floats
    familiarity: Floats

    @property
    def heads(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.lexical, self.static, self.linear, self.knn


def folds(labels: Labels, *, seed: int) -> list[tuple[Labels, Labels]]:
    """(rest, held) indices, every class spread evenly; a class of two or more is present in every rest."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[by_class] = np.arange(len(labels)) % FOLDS
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(min(FOLDS, len(labels)))]


def choose_strengths(data: Data, *, seed: int) -> Strengths:
    """Those with the least log loss, temperature fitted, on one fold."""
    rest, held = folds(data.labels, seed=seed)[0]

    def best(fit: Callable[[float], Floats]) -> float:
        losses = [_loss(fit(strength), data.labels[held]) for strength in STRENGTHS]
        return STRENGTHS[int(np.argmin(losses))]

    return Strengths(
        lexical=best(lambda c: _lexical_logits(_lexical(data, rest, c), data, held)),
        static=best(lambda c: _linear(data.static, data, rest, c).logits(data.static[held])),
        linear=best(lambda c: _linear(data.vectors, data, rest, c).logits(data.vectors[held])),
    )


def cross_fit(data: Data, strengths: Strengths, *, seed: int, report: Callable[[float], None]) -> HeldOut:
    """Held-out logits of every head, over folds."""
    shape = (len(data.labels), data.classes)
    lexical, static, linear, votes = (np.zeros(shape, dtype=np.float32) for _ in range(4))
    familiarity = np.zeros(len(data.labels), dtype=np.float32)
    for index, (rest, held) in enumerate(folds(data.labels, seed=seed)):
        lexical[held] = _lexical_logits(_lexical(data, rest, strengths.lexical), data, held)
        static[held] = _linear(data.static, data, rest, strengths.static).logits(data.static[held])
        linear[held] = _linear(data.vectors, data, rest, strengths.linear).logits(data.vectors[held])
        knn = _knn(data, rest, seed=seed)
        for start in range(0, len(held), BLOCK):
            block = held[start : start + BLOCK]
            votes[block], familiarity[block] = knn.look(data.vectors[block])
        report((index + 1) / FOLDS)
    return HeldOut(lexical=lexical, static=static, linear=linear, knn=votes, familiarity=familiarity)


def write_heads(data: Data, strengths: Strengths, *, out: Path, seed: int) -> None:
    """Fit every head on all texts and write its table."""
    everything = np.arange(len(data.labels))
    linear = _linear(data.vectors, data, everything, strengths.linear)
    static = _linear(data.static, data, everything, strengths.static)
    write_arrays(out / LEXICAL, _lexical(data, everything, strengths.lexical).arrays())
    write_arrays(out / STATIC, {**data.tokens.arrays(), **static.arrays()})
    write_arrays(out / SEMANTIC, {**linear.arrays(), **_knn(data, everything, seed=seed).arrays()})


def held_out_right(vectors: Floats, labels: Labels, *, seed: int) -> NDArray[np.bool_]:
    """Which texts a linear head on `vectors` gets right, over folds."""
    names, labels = np.unique(labels, return_inverse=True)
    right = np.zeros(len(labels), dtype=bool)
    for rest, held in folds(labels, seed=seed):
        head = fit_linear(vectors[rest], labels[rest], strength=3.0, classes=len(names))
        right[held] = head.logits(vectors[held]).argmax(axis=1) == labels[held]
    return right


def _lexical(data: Data, rows: Labels, strength: float) -> LexicalHead:
    part = LexicalMatrix(matrix=data.lexical.matrix[rows], idf=data.lexical.idf)
    return fit_lexical(part, data.labels[rows], data.features, strength=strength, classes=data.classes)


def _lexical_logits(head: LexicalHead, data: Data, rows: Labels) -> Floats:
    logits: Floats = data.lexical.matrix[rows] @ np.concatenate((head.weights, head.traits)) + head.bias
    return logits


def _linear(vectors: Floats, data: Data, rows: Labels, strength: float) -> LinearHead:
    return fit_linear(vectors[rows], data.labels[rows], strength=strength, classes=data.classes)


def _knn(data: Data, rows: Labels, *, seed: int) -> KnnHead:
    each = max(1, EXEMPLARS // data.classes)
    chosen = rows[choose_exemplars(data.labels[rows], each=each, rng=np.random.default_rng(seed))]
    return KnnHead(data.vectors[chosen], data.labels[chosen], data.classes)


def _loss(logits: Floats, labels: Labels) -> float:
    return log_loss(logits / np.float32(fit_temperature(logits, labels)), labels)
