"""A lexical head: word pieces and hashed pairs of neighbours, TF-IDF weighted, plus writing systems, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.files import Arrays
from routers.heads.writing_systems import ENGLISH_WORDS, FOREIGN_WORDS, WRITING_SYSTEM_NAMES, WritingSystems
from routers.tokens import WordCachedTokenizer

HASH_BUCKETS = 1 << 16
"""Pairs of neighbouring pieces are hashed into this many rows."""
N_TRAITS = len(WRITING_SYSTEM_NAMES) + 2
"""Features that are not words: shares of letters by writing system, of foreign and of English function words."""


class LexicalFeatures:
    """What the head sees of a text: rows of its table with TF-IDF weights (unit length), and a few traits."""

    def __init__(self, pieces: WordCachedTokenizer) -> None:
        self.pieces = pieces
        self.rows = pieces.size + HASH_BUCKETS
        self.scripts = WritingSystems()
        self.function_words = np.zeros((pieces.size, 2), dtype=np.float32)
        self.function_words[pieces.known(FOREIGN_WORDS.split()), 0] = 1.0
        self.function_words[pieces.known(ENGLISH_WORDS.split()), 1] = 1.0

    def terms(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Distinct rows of the pieces and pairs in `ids`, and 1 + log(count) of each."""
        rows, counts = np.unique(np.concatenate((ids, self.pairs(ids))), return_counts=True)
        return rows, np.log(counts, dtype=np.float32) + np.float32(1)

    def pairs(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of every pair of neighbours in `ids`."""
        return (((ids[:-1] * 0x9E3779B1 + ids[1:] * 0x85EBCA6B) >> 7) & (HASH_BUCKETS - 1)) + self.pieces.size

    def traits(self, text: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Shape (TRAITS,)."""
        words = self.function_words[ids].sum(axis=0) / max(1, len(ids))
        return np.concatenate((self.scripts(text), words))


@dataclass(frozen=True, slots=True)
class LexicalHead:
    """`weights` (rows, n_categories), `idf` (rows,), `traits` (TRAITS, n_categories), `bias` (n_categories,).

    `known` (rows,) says which rows training met; the weights of the others are zero.
    """

    features: LexicalFeatures
    weights: NDArray[np.float32]
    idf: NDArray[np.float32]
    traits: NDArray[np.float32]
    bias: NDArray[np.float32]
    known: NDArray[np.bool_]

    def look(self, text: str, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], float]:
        """Logits (n_categories,) of one text, cut, from its word-piece ids, and how much of it, 0 to 1, is known."""
        logits = self.bias + self.features.traits(text, ids) @ self.traits
        if not len(ids):
            return logits, 0.0
        rows, counts = self.features.terms(ids)
        counts *= self.idf[rows]
        squares = float(counts @ counts)
        logits += (counts @ self.weights[rows]) / np.float32(squares**0.5)
        return logits, float(counts**2 @ self.known[rows]) / squares

    def arrays(self) -> Arrays:
        return {"weights": self.weights, "idf": self.idf, "traits": self.traits, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Arrays, features: LexicalFeatures) -> Self:
        tables = {n: arrays[n] for n in ("weights", "idf", "traits", "bias")}
        return cls(features=features, known=np.asarray(tables["weights"].any(axis=1)), **tables)


@dataclass(frozen=True, slots=True)
class LexicalMatrix:
    """A training set as one sparse matrix (n_texts, rows + TRAITS), TF-IDF weighted by `idf` (rows,)."""

    matrix: Any
    idf: NDArray[np.float32]

    def counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """In how many of the texts `rows` each term occurs, shape (rows of the table,)."""
        found: NDArray[np.int64] = np.bincount(self.matrix[rows].indices, minlength=self.matrix.shape[1])
        return found[: len(self.idf)]

    def known_share(self, rows: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """How much of each of the texts `rows` is terms that `counts` has met twice or more, as LexicalHead.look."""
        words = self.matrix[rows][:, : len(self.idf)]
        return words.power(2) @ (counts > 1).astype(np.float32)  # type: ignore[no-any-return]


def lexical_matrix(texts: Sequence[str], ids: Sequence[NDArray[np.int64]], features: LexicalFeatures) -> LexicalMatrix:
    """Features of all `texts` (cut) with their word-piece `ids`."""
    from scipy.sparse import csr_matrix, hstack

    terms = [features.terms(i) for i in ids]
    ends = np.cumsum([0, *(len(rows) for rows, _ in terms)])
    rows = np.concatenate([rows for rows, _ in terms])
    seen = np.bincount(rows, minlength=features.rows)
    idf = (np.log((1 + len(texts)) / (1 + seen)) + 1).astype(np.float16).astype(np.float32)
    values = np.concatenate([counts for _, counts in terms]) * idf[rows]
    lengths = np.sqrt(np.add.reduceat(np.append(values**2, 0.0), ends[:-1]) * (np.diff(ends) > 0))
    values /= np.repeat(np.maximum(lengths, 1e-9), np.diff(ends))
    words = csr_matrix((values, rows, ends), shape=(len(texts), features.rows), dtype=np.float32)
    traits = csr_matrix(np.stack([features.traits(t, i) for t, i in zip(texts, ids, strict=True)]))
    return LexicalMatrix(matrix=hstack([words, traits], format="csr", dtype=np.float32), idf=idf)


def fit_lexical(
    data: LexicalMatrix, labels: NDArray[np.int64], features: LexicalFeatures, *, strength: float, classes: int
) -> LexicalHead:
    """A LexicalHead: one logistic regression a category against the rest, classes balanced, by dual coordinate descent.

    On wide sparse rows that is ten times faster than the multinomial model and no less accurate; the pool of heads
    calibrates it. Terms that a single text uses keep weight zero, as unknown ones do, and so flatten the posterior.
    """
    from sklearn.linear_model import LogisticRegression

    met = np.bincount(data.matrix.indices, minlength=data.matrix.shape[1]) > 1
    used = np.flatnonzero(met)
    matrix = data.matrix[:, used]
    weights = np.zeros((data.matrix.shape[1], classes), dtype=np.float32)
    bias = np.zeros(classes, dtype=np.float32)
    model = LogisticRegression(
        C=strength, class_weight="balanced", solver="liblinear", dual=True, tol=1e-2, max_iter=1000, random_state=0
    )
    for index in range(classes):
        model.fit(matrix, labels == index)
        weights[used, index], bias[index] = model.coef_[0], model.intercept_[0]
    rows = features.rows
    return LexicalHead(
        features=features, weights=weights[:rows], idf=data.idf, traits=weights[rows:], bias=bias, known=met[:rows]
    )
