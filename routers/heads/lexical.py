"""Lexical head: TF-IDF of tokens and hashed token bigrams, plus language features, in one linear layer.

Training uses a sparse matrix (`LexicalMatrix`); serving sums rows of the tables in `LexicalHead`, in
`routers.heads.fast`. Both compute the same logits. The language features are writing systems and function words, which
an English encoder does not see.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.files import Arrays
from routers.tokens import HASH_BUCKETS, WordCachedTokenizer

_LANGUAGES = tomllib.loads(files("routers.heads").joinpath("languages.toml").read_text(encoding="utf-8"))
WRITING_SYSTEM_NAMES = tuple(_LANGUAGES["writing_systems"])
WEIGHT_STEP = 1 / 64
"""Written weights are multiples of this, so that they compress to two thirds; no prediction of 4,686 public prompts
changes (docs/experiments/router-training.md)."""


def _table() -> NDArray[np.int8]:
    table = np.full(0x10000, -1, dtype=np.int8)
    for index, name in enumerate(WRITING_SYSTEM_NAMES):
        for first, last in _LANGUAGES["writing_systems"][name]:
            table[first : last + 1] = index
    return table


class WritingSystems:
    """Computes the shares of a text's letters by writing system, float32 (len(WRITING_SYSTEM_NAMES),).

    The shares sum to 1, or are all zero for a text without letters.
    """

    def __init__(self) -> None:
        self._table = _table()
        self._ascii = np.zeros(len(WRITING_SYSTEM_NAMES), dtype=np.float32)
        self._ascii[0] = 1.0

    def __call__(self, text: str) -> NDArray[np.float32]:
        if text.isascii():
            return self._ascii
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        found = self._table[np.minimum(points, 0xFFFF)]
        counts = np.bincount(found[found >= 0], minlength=len(WRITING_SYSTEM_NAMES)).astype(np.float32)
        return counts / max(1.0, float(counts.sum()))


N_DENSE = len(WRITING_SYSTEM_NAMES) + 2
"""Dense features: shares of letters by writing system, share of foreign and of English function words."""


class LexicalFeatures:
    """Computes the head's features: TF-IDF terms (rows of its table) and dense features."""

    def __init__(self, tokenizer: WordCachedTokenizer) -> None:
        self.tokenizer = tokenizer
        self.rows = tokenizer.vocabulary_size + HASH_BUCKETS
        self.writing_systems = WritingSystems()
        self.function_words = np.zeros((tokenizer.vocabulary_size, 2), dtype=np.float32)
        self.function_words[tokenizer.vocabulary_ids(_LANGUAGES["foreign"].split()), 0] = 1.0
        self.function_words[tokenizer.vocabulary_ids(_LANGUAGES["english"].split()), 1] = 1.0

    def terms(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the distinct rows of tokens and bigrams in `ids`, and 1 + log(count) of each."""
        rows, counts = np.unique(np.concatenate((ids, self.tokenizer.bigrams(ids))), return_counts=True)
        return rows, np.log(counts, dtype=np.float32) + np.float32(1)

    def dense(self, text: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the dense features, shape (N_DENSE,)."""
        words = self.function_words[ids].sum(axis=0) / max(1, len(ids))
        return np.concatenate((self.writing_systems(text), words))


@dataclass(frozen=True, slots=True)
class LexicalHead:
    """Maps lexical features to logits by a linear model.

    `weights` (rows, n_categories), `idf` (rows,), `dense` weights (N_DENSE, n_categories), `bias` (n_categories,).

    `known` (rows,) marks the terms seen in training; the weights of other terms are zero.
    """

    features: LexicalFeatures
    weights: NDArray[np.float32]
    idf: NDArray[np.float32]
    dense: NDArray[np.float32]
    bias: NDArray[np.float32]
    known: NDArray[np.bool_]

    def arrays(self) -> Arrays:
        """Return the tables to write, with `weights` rounded to multiples of WEIGHT_STEP."""
        step = np.float32(WEIGHT_STEP)
        weights = (np.rint(self.weights.astype(np.float32) / step) * step).astype(self.weights.dtype)
        return {"weights": weights, "idf": self.idf, "dense": self.dense, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Arrays, features: LexicalFeatures) -> Self:
        tables = {n: arrays[n] for n in ("weights", "idf", "dense", "bias")}
        return cls(features=features, known=np.asarray(tables["weights"].any(axis=1)), **tables)


@dataclass(frozen=True, slots=True)
class LexicalMatrix:
    """A training set as one sparse matrix (n_texts, rows + N_DENSE), TF-IDF weighted by `idf` (rows,)."""

    matrix: Any
    idf: NDArray[np.float32]

    def document_frequency(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of texts among `rows` that contain each term, shape (rows of the table,)."""
        found: NDArray[np.int64] = np.bincount(self.matrix[rows].indices, minlength=self.matrix.shape[1])
        return found[: len(self.idf)]

    def known_share(self, rows: NDArray[np.int64], document_frequency: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the share of each text in `rows` whose terms occur in two or more texts, by squared TF-IDF weight."""
        terms = self.matrix[rows][:, : len(self.idf)]
        return terms.power(2) @ (document_frequency > 1).astype(np.float32)  # type: ignore[no-any-return]


def lexical_matrix(texts: Sequence[str], ids: Sequence[NDArray[np.int64]], features: LexicalFeatures) -> LexicalMatrix:
    """Compute the features of all truncated `texts` with their token `ids`."""
    from scipy.sparse import csr_matrix, hstack

    terms = [features.terms(i) for i in ids]
    ends = np.cumsum([0, *(len(rows) for rows, _ in terms)])
    rows = np.concatenate([rows for rows, _ in terms])
    frequency = np.bincount(rows, minlength=features.rows)
    idf = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float16).astype(np.float32)
    values = np.concatenate([counts for _, counts in terms]) * idf[rows]
    lengths = np.sqrt(np.add.reduceat(np.append(values**2, 0.0), ends[:-1]) * (np.diff(ends) > 0))
    values /= np.repeat(np.maximum(lengths, 1e-9), np.diff(ends))
    tfidf = csr_matrix((values, rows, ends), shape=(len(texts), features.rows), dtype=np.float32)
    dense = csr_matrix(np.stack([features.dense(t, i) for t, i in zip(texts, ids, strict=True)]))
    return LexicalMatrix(matrix=hstack([tfidf, dense], format="csr", dtype=np.float32), idf=idf)


def fit_lexical(
    data: LexicalMatrix, labels: NDArray[np.int64], features: LexicalFeatures, *, c: float, classes: int
) -> LexicalHead:
    """Fit one logistic regression for each category against the others, classes balanced; `c` is scikit-learn's C.

    On wide sparse rows, dual coordinate descent is ten times faster than the multinomial model and as accurate; the
    logarithmic pool calibrates it. Terms of a single text keep weight zero, as unknown terms do, so that they flatten
    the posterior.
    """
    from sklearn.linear_model import LogisticRegression

    known = np.bincount(data.matrix.indices, minlength=data.matrix.shape[1]) > 1
    used = np.flatnonzero(known)
    matrix = data.matrix[:, used]
    weights = np.zeros((data.matrix.shape[1], classes), dtype=np.float32)
    bias = np.zeros(classes, dtype=np.float32)
    model = LogisticRegression(
        C=c, class_weight="balanced", solver="liblinear", dual=True, tol=1e-2, max_iter=1000, random_state=0
    )
    for index in range(classes):
        model.fit(matrix, labels == index)
        weights[used, index], bias[index] = model.coef_[0], model.intercept_[0]
    rows = features.rows
    return LexicalHead(
        features=features, weights=weights[:rows], idf=data.idf, dense=weights[rows:], bias=bias, known=known[:rows]
    )
