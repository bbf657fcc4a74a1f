"""The fast heads: logits of the lexical and the static head, for every request in 0.02 to 0.1 ms.

`StaticVectors` are token vectors distilled from the sentence encoder, as in model2vec. Every token is encoded alone,
and PCA reduces the vectors of its last and inner layers side by side. Frequent tokens get lower weights (smooth inverse
frequency, Arora et al. 2017). The vector of a text is the sum of its tokens' vectors at unit length.

`FastHeads` serves both heads in one pass, with everything about a token side by side in memory. It computes the same as
LexicalHead, StaticVectors and LinearHead, which training uses. Between two requests the CPU caches go cold, so every
call and every cache line counts: the compiled kernel (`routers.kernel`) takes one call, NumPy some forty and three
times as long. `is_foreign` marks the texts for `routers.multilingual`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats
from routers.files import Arrays
from routers.heads.lexical import WRITING_SYSTEM_NAMES, LexicalHead
from routers.heads.semantic import LinearHead
from routers.kernel import KERNEL, Kernel, KernelTables
from routers.tokens import FAST_CHARACTERS, truncate_middle

DIMENSIONS = 256
SMOOTHING = 1e-3
"""Tokens more frequent than this share of all tokens lose at least half their weight."""
MAX_LEVEL = 31
"""Largest absolute value in the table of static vectors. 63 levels compress to 5.3 MB, 255 to 7.0 MB, at the same
accuracy (docs/experiments/router-training.md)."""


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    largest: Floats = np.maximum.reduce(logits, axis=-1, keepdims=True)
    shifted = np.exp(logits - largest)
    total: Floats = np.add.reduce(shifted, axis=-1, keepdims=True)
    result: Floats = shifted / total
    return result


@dataclass(frozen=True, slots=True)
class StaticVectors:
    """Quantised static token vectors: `tokens` (vocabulary, dimensions), int8, times `scales` (vocabulary,).

    They are weighted by token frequency.
    """

    tokens: NDArray[np.int8]
    scales: NDArray[np.float32]

    @classmethod
    def of(cls, vectors: Floats) -> Self:
        """Quantise float vectors (vocabulary, dimensions)."""
        largest = np.abs(vectors).max(axis=1)
        scales = (np.where(largest > 0, largest, 1) / MAX_LEVEL).astype(np.float16).astype(np.float32)
        levels = np.rint(vectors / np.maximum(scales, np.float32(1e-9))[:, None])
        return cls(levels.clip(-MAX_LEVEL, MAX_LEVEL).astype(np.int8), scales)

    def vector(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the unit vector (dimensions,) of a text with these token ids; zero without tokens."""
        total: NDArray[np.float32] = self.scales[ids] @ self.tokens[ids].astype(np.float32)
        length = float(total @ total) ** 0.5
        return total / length if length else total

    def vectors(self, texts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return the vectors (n_texts, dimensions) of several texts."""
        return np.stack([self.vector(ids) for ids in texts])

    def arrays(self) -> Arrays:
        """Return the tables; a column of `tokens` lies together, which compresses better."""
        return {"tokens": np.asfortranarray(self.tokens), "scales": self.scales}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        return cls(np.ascontiguousarray(arrays["tokens"]), arrays["scales"])


def distil(
    encode_tokens: Callable[[NDArray[np.int64]], NDArray[np.float32]], frequencies: NDArray[np.int64]
) -> StaticVectors:
    """Distil token vectors from `encode_tokens` (ids to vectors), weighted by corpus `frequencies` (vocabulary,)."""
    from sklearn.decomposition import PCA

    vectors = encode_tokens(np.arange(len(frequencies)))
    reduced = PCA(min(DIMENSIONS, *vectors.shape), svd_solver="covariance_eigh").fit_transform(vectors)
    share = frequencies / max(1, int(frequencies.sum()))
    return StaticVectors.of((reduced * (SMOOTHING / (SMOOTHING + share))[:, None]).astype(np.float32))


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
    cosine to the nearest centroid and the share of known terms. `foreign` is True if the text is probably not English,
    `other_script` if most of its letters are outside the Latin script.
    """

    lexical: Floats
    static: Floats
    vector: Floats
    similarity: tuple[float, float]
    foreign: bool = False
    other_script: bool = False


class FastHeads:
    """Computes the FastFeatures of a text. Thread-safe.

    The last result is cached, because an encoder pass usually follows the fast prediction of the same text. Term
    weights stay float16, and static vectors int8: less memory, summed in a third of the time.
    """

    def __init__(
        self,
        lexical: LexicalHead,
        static: StaticVectors,
        linear: LinearHead,
        centroids: StaticCentroids,
        *,
        kernel: Kernel | None = KERNEL,
    ) -> None:
        self._features = lexical.features
        self._tokenizer = lexical.features.tokenizer
        self._classes = len(lexical.bias)
        self._terms = np.column_stack((lexical.weights, lexical.idf, lexical.known)).astype(np.float16)
        self._dimensions = static.tokens.shape[1]
        self._tokens = np.column_stack((static.tokens, lexical.features.function_words.astype(np.int8)))
        self._static = static
        self._directions = np.concatenate((linear.weights.T, centroids.centroids))
        self._static_bias = linear.bias
        self._lexical_bias = lexical.bias
        self._ascii_bias = lexical.bias + lexical.dense[0]  # all letters are ASCII
        self._writing_system_weights, self._function_word_weights = lexical.dense[:-2], lexical.dense[-2:]
        self._log_counts = (1 + np.log(np.arange(1, FAST_CHARACTERS + 2))).astype(np.float32)
        self._last: tuple[str, FastFeatures] | None = None
        self._tables = None if kernel is None else self._open_tables(kernel, static.scales)

    def _open_tables(self, kernel: Kernel, scales: Floats) -> KernelTables:
        return kernel.Tables(
            tokens=np.ascontiguousarray(self._tokens),
            scales=np.ascontiguousarray(scales, dtype=np.float32),
            directions=np.ascontiguousarray(self._directions, dtype=np.float32),
            static_bias=np.ascontiguousarray(self._static_bias, dtype=np.float32),
            terms=np.ascontiguousarray(self._terms).view(np.uint16),
            function_words=np.ascontiguousarray(self._function_word_weights, dtype=np.float32),
            log_counts=self._log_counts,
        )

    def __call__(self, text: str) -> FastFeatures:
        text = truncate_middle(text, characters=FAST_CHARACTERS)
        last = self._last
        if last is None or last[0] != text:
            last = self._last = (text, self._compute(text))
        return last[1]

    def _compute(self, text: str) -> FastFeatures:
        ids = self._tokenizer.id_bytes(text)
        writing_systems, bias = None, self._ascii_bias
        if not text.isascii():
            writing_systems = self._features.writing_systems(text)
            bias = self._lexical_bias + writing_systems @ self._writing_system_weights
        classes = self._classes
        if self._tables is None:
            outputs, shares = self._by_numpy(np.frombuffer(ids, dtype=np.int64), bias)
        else:
            outputs = np.empty(2 * classes + self._dimensions, dtype=np.float32)
            shares = self._tables.compute(ids, bias, outputs)
        nearest, known, foreign_words, english_words = shares
        lexical, static, vector = outputs[:classes], outputs[classes : 2 * classes], outputs[2 * classes :]
        foreign = is_foreign(writing_systems, foreign_words, english_words)
        other_script = foreign and other_script_share(writing_systems) > MIN_OTHER_SCRIPT
        return FastFeatures(lexical, static, vector, (nearest, known), foreign, other_script)

    def _by_numpy(self, ids: NDArray[np.int64], bias: Floats) -> tuple[Floats, tuple[float, float, float, float]]:
        """Compute what KernelTables.compute does: the outputs, and the four numbers that it returns."""
        vector = self._static.vector(ids)
        along = self._directions @ vector
        static, cosines = along[: self._classes] + self._static_bias, along[self._classes :]
        words = self._features.function_words[ids].sum(axis=0) / max(1, len(ids))
        lexical, known = bias + words @ self._function_word_weights, 0.0
        if len(ids):
            rows, counts = self._features.terms(ids)
            terms = self._terms.take(rows, axis=0).astype(np.float32)
            tfidf = counts * terms[:, -2]
            squares = tfidf * tfidf
            norm = float(squares.sum())
            lexical = lexical + tfidf @ terms[:, :-2] / norm**0.5
            known = float(squares @ terms[:, -1]) / norm
        foreign, english = words.tolist()
        return np.concatenate((lexical, static, vector)), (float(cosines.max()), known, foreign, english)


MAX_FOREIGN_SCRIPT, MAX_UNEXPLAINED_SCRIPT = 0.25, 0.05
"""Shares of letters outside the Latin script above which a text is foreign: in any text, and in one with hardly any
English function words, such as code below a question."""
MIN_ENGLISH_WORDS, MIN_FOREIGN_EVIDENCE = 0.04, 0.02
MIN_OTHER_SCRIPT = 0.5
"""Share of letters outside the Latin script above which the English encoder gains nothing over the fast heads
(docs/experiments/languages.md)."""
ACCENT_WEIGHT = 2.0
"""Accented letters count this much more than foreign function words."""
_WEIGHTS = np.ones(len(WRITING_SYSTEM_NAMES), dtype=np.float32)
_WEIGHTS[WRITING_SYSTEM_NAMES.index("cjk")] = 2.0  # one character is about half a word


def is_foreign(writing_systems: Floats | None, foreign_words: float, english_words: float) -> bool:
    """Return True if a text is probably not English.

    `writing_systems` are the shares of letters as in `WritingSystems`, None for ASCII. The others are the shares of
    foreign and of English function words among the tokens.
    """
    if writing_systems is None:
        return foreign_words > max(english_words, MIN_FOREIGN_EVIDENCE)
    accented = float(writing_systems[1])
    script = other_script_share(writing_systems)
    if script > MAX_FOREIGN_SCRIPT or (script > MAX_UNEXPLAINED_SCRIPT and english_words < MIN_ENGLISH_WORDS):
        return True
    evidence = foreign_words + accented
    return evidence > MIN_FOREIGN_EVIDENCE and foreign_words + ACCENT_WEIGHT * accented > english_words


def other_script_share(writing_systems: Floats | None) -> float:
    """Return the share of letters outside the Latin script, of `writing_systems` as in `is_foreign`."""
    if writing_systems is None:
        return 0.0
    weighted = writing_systems * _WEIGHTS
    total = float(weighted.sum())
    return (total - float(weighted[0]) - float(weighted[1])) / total if total else 0.0


MAX_CENTROIDS = 512
"""Centroids of static vectors, shared evenly among the categories; more would slow `predict_fast`."""


def fit_centroids(vectors: Floats, labels: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Return unit k-means centroids (n_centroids, dimensions) of every category, and their labels (n_centroids,)."""
    from sklearn.cluster import MiniBatchKMeans

    names = np.unique(labels)
    found = []
    for name in names:
        own = vectors[labels == name]
        count = max(1, min(MAX_CENTROIDS // len(names), len(own) // 2))
        means = MiniBatchKMeans(count, n_init=1, batch_size=1024, random_state=0).fit(own).cluster_centers_
        found.append(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9))
    return np.concatenate(found).astype(np.float32), np.repeat(names, [len(means) for means in found])
