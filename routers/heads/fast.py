"""The fast heads: logits of the lexical and the static head, for every request in about 0.1 ms.

`StaticVectors` are token vectors distilled from the sentence encoder, as in model2vec: every token is encoded alone,
the vectors are reduced by PCA, and frequent tokens get lower weights (smooth inverse frequency, Arora et al. 2017). The
vector of a text is the sum of its tokens' vectors at unit length.

`FastHeads` serves both heads in one pass, with everything about a token side by side in memory. It computes the same as
LexicalHead, StaticVectors and LinearHead, which training uses, in a third of the time. Between two requests the CPU
caches go cold, so every call and every cache line counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats
from routers.files import Arrays
from routers.heads.lexical import LexicalHead
from routers.heads.semantic import LinearHead
from routers.languages import is_foreign
from routers.tokens import FAST_CHARACTERS, truncate_middle

DIMENSIONS = 256
SMOOTHING = 1e-3
"""Tokens more frequent than this share of all tokens lose at least half their weight."""


@dataclass(frozen=True, slots=True)
class StaticVectors:
    """`tokens` (vocabulary, dimensions), float32, weighted by token frequency."""

    tokens: NDArray[np.float32]

    def vector(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the unit vector (dimensions,) of a text with these token ids; zero without tokens."""
        total: NDArray[np.float32] = self.tokens[ids].sum(axis=0)
        length = float(total @ total) ** 0.5
        return total / length if length else total

    def vectors(self, texts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return the vectors (n_texts, dimensions) of several texts."""
        return np.stack([self.vector(ids) for ids in texts])

    def arrays(self) -> Arrays:
        return {"tokens": self.tokens}


def distil(
    encode_tokens: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    frequencies: NDArray[np.int64],
) -> StaticVectors:
    """Distil token vectors from `encode_tokens` (ids to vectors), weighted by corpus `frequencies` (vocabulary,)."""
    vectors = encode_tokens(np.arange(len(frequencies)))
    reduced = _pca(vectors, dimensions=min(DIMENSIONS, vectors.shape[1]))
    share = frequencies / max(1, int(frequencies.sum()))
    tokens = reduced * (SMOOTHING / (SMOOTHING + share))[:, None]
    return StaticVectors(tokens=tokens.astype(np.float16).astype(np.float32))


def _pca(vectors: NDArray[np.float32], *, dimensions: int) -> NDArray[np.float32]:
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    reduced: NDArray[np.float32] = centred @ axes[:, ::-1][:, :dimensions]
    return reduced


@dataclass(frozen=True, slots=True)
class StaticCentroids:
    """Training data in the space of static vectors, unit length: k-means `centroids` (n, dimensions), and category
    `means` (n_categories, dimensions)."""

    centroids: Floats
    means: Floats


@dataclass(frozen=True, slots=True)
class FastFeatures:
    """Outputs of the fast heads for one text.

    `lexical` and `static` are logits (n_categories,), `vector` is the static vector (dimensions,). `similarity` is the
    cosine to the nearest centroid and the share of known terms. `foreign` is True if the text is probably not English.
    """

    lexical: Floats
    static: Floats
    vector: Floats
    similarity: tuple[float, float]
    foreign: bool = False


class FastHeads:
    """Computes the FastFeatures of a text. Thread-safe.

    The last result is cached, because an encoder pass usually follows the fast prediction of the same text. Term
    weights stay float16. Static vectors are int8 with one scale for each token: half the memory, summed in a third of
    the time. The error is at most 1/254 of a token's largest component and moves posteriors by .001.
    """

    def __init__(
        self, lexical: LexicalHead, static: StaticVectors, linear: LinearHead, centroids: StaticCentroids
    ) -> None:
        self._features = lexical.features
        self._tokenizer = lexical.features.tokenizer
        self._classes = len(lexical.bias)
        self._terms = np.column_stack((lexical.weights, lexical.idf, lexical.known)).astype(np.float16)
        self._int8_vectors, scales = _quantise(static.tokens)
        self._token_columns = np.column_stack((scales, lexical.features.function_words))
        self._directions = np.concatenate((linear.weights.T, centroids.centroids))
        self._static_bias = linear.bias
        self._lexical_bias = lexical.bias
        self._ascii_bias = lexical.bias + lexical.dense[0]  # all letters are ASCII
        self._writing_system_weights, self._function_word_weights = lexical.dense[:-2], lexical.dense[-2:]
        self._log_counts = (1 + np.log(np.arange(1, FAST_CHARACTERS + 2))).astype(np.float32)
        self._last: tuple[str, FastFeatures] | None = None

    def __call__(self, text: str) -> FastFeatures:
        text = truncate_middle(text, characters=FAST_CHARACTERS)
        last = self._last
        if last is None or last[0] != text:
            last = self._last = (text, self._compute(text))
        return last[1]

    def _compute(self, text: str) -> FastFeatures:
        ids = self._tokenizer(text)
        columns = self._token_columns.take(ids, axis=0)
        vector = columns[:, 0] @ self._int8_vectors.take(ids, axis=0).astype(np.float32)
        length = float(vector @ vector) ** 0.5
        if length:
            vector = vector / np.float32(length)
        along = self._directions @ vector
        static = along[: self._classes] + self._static_bias
        nearest = float(np.maximum.reduce(along[self._classes :]))
        function_words = np.add.reduce(columns[:, 1:], axis=0) / np.float32(max(1, len(ids)))
        writing_systems = None if text.isascii() else self._features.writing_systems(text)
        lexical, known_share = self._lexical(ids, writing_systems, function_words)
        foreign = is_foreign(writing_systems, *function_words.tolist())
        return FastFeatures(lexical, static, vector, (nearest, known_share), foreign)

    def _lexical(
        self, ids: NDArray[np.int64], writing_systems: Floats | None, function_words: Floats
    ) -> tuple[Floats, float]:
        """Return the lexical head's logits and the share of known terms (0 to 1, by squared TF-IDF weight)."""
        if writing_systems is None:
            logits = self._ascii_bias
        else:
            logits = self._lexical_bias + writing_systems @ self._writing_system_weights
        if not len(ids):
            return logits, 0.0
        rows, repeats = _count_distinct(ids, self._features.bigrams(ids))
        terms = self._terms.take(rows, axis=0).astype(np.float32)
        tfidf = self._log_counts.take(repeats, mode="clip") * terms[:, -2]
        squares = tfidf * tfidf
        norm = float(np.add.reduce(squares))
        logits = logits + function_words @ self._function_word_weights
        logits += (tfidf @ terms[:, :-2]) / np.float32(norm**0.5)
        return logits, float(squares @ terms[:, -1]) / norm


def _quantise(vectors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return int8 vectors (n, dimensions) and their scales (n,)."""
    largest = np.abs(vectors).max(axis=1).astype(np.float32)
    scales = (np.where(largest > 0, largest, 1) / (2**7 - 1)).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def _count_distinct(ids: NDArray[np.int64], bigrams: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct values of both arrays, and the count of each minus one."""
    values = np.concatenate((ids, bigrams))
    values.sort()
    first = np.empty(len(values) + 1, dtype=bool)
    first[0] = first[-1] = True
    np.not_equal(values[1:], values[:-1], out=first[1:-1])
    starts = first.nonzero()[0]
    return values.take(starts[:-1]), starts[1:] - starts[:-1] - 1


MAX_CENTROIDS = 512
"""Centroids of static vectors, shared evenly among the categories; more would slow `predict_fast`."""


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
