"""The heads of the router: lexical and static for every request, linear and nearest neighbours after the encoder.

`LexicalHead` is TF-IDF of tokens and hashed token bigrams, plus language features, in one linear layer. Training uses a
sparse matrix (`LexicalMatrix`); serving sums rows of tables. Both compute the same logits. The language features are
writing systems and function words, which an English encoder does not see.

`StaticVectors` are token vectors distilled from the sentence encoder, as in model2vec. Every token is encoded alone,
and PCA reduces the vectors of its last and inner layers side by side. Frequent tokens get lower weights (smooth inverse
frequency, Arora et al. 2017). The vector of a text is the sum of its tokens' vectors at unit length.

`FastHeads` serves both in one pass of 0.02 to 0.1 ms, with everything about a token side by side in memory. Between two
requests the CPU caches go cold, so every call and every cache line counts: the compiled kernel (`routers.kernel`) takes
one call, NumPy some forty and three times as long. `is_foreign` marks the texts for `routers.multilingual`.

`LinearHead` is a multinomial logistic regression over the encoder's vectors, and over the static ones. `KnnHead` votes
by cosine with similarity weights, and measures how similar a text is to the training data. For it, vectors are
projected to the exemplars' principal axes: time is proportional to the bytes read, and the last axes carry mostly noise
(docs/experiments/cascade-and-encoders.md). The part of a text outside these axes counts as one more axis on which no
exemplar lies, so it lowers the similarity.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats
from routers.examples import Arrays
from routers.kernel import KERNEL, Kernel, KernelTables
from routers.tokens import FAST_CHARACTERS, HASH_BUCKETS, WordCachedTokenizer, truncate_middle

_LANGUAGES = tomllib.loads(files("routers").joinpath("languages.toml").read_text(encoding="utf-8"))
WRITING_SYSTEM_NAMES = tuple(_LANGUAGES["writing_systems"])
WEIGHT_STEP = 1 / 64
"""Written weights are multiples of this, so that they compress to two thirds; no prediction of 4,686 public prompts
changes (docs/experiments/router-training.md)."""


class WritingSystems:
    """Computes the shares of a text's letters by writing system, float32 (len(WRITING_SYSTEM_NAMES),).

    The shares sum to 1, or are all zero for a text without letters.
    """

    def __init__(self) -> None:
        self._table = np.full(0x10000, -1, dtype=np.int8)
        for index, name in enumerate(WRITING_SYSTEM_NAMES):
            for first, last in _LANGUAGES["writing_systems"][name]:
                self._table[first : last + 1] = index
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
    """

    features: LexicalFeatures
    weights: NDArray[np.float32]
    idf: NDArray[np.float32]
    dense: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """The terms seen in training (rows,); the weights of others are zero."""
        return np.asarray(self.weights.any(axis=1))

    def arrays(self) -> Arrays:
        """Return the tables to write, with `weights` rounded to multiples of WEIGHT_STEP."""
        step = np.float32(WEIGHT_STEP)
        weights = (np.rint(self.weights.astype(np.float32) / step) * step).astype(self.weights.dtype)
        return {"weights": weights, "idf": self.idf, "dense": self.dense, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Arrays, features: LexicalFeatures) -> Self:
        return cls(features, *(arrays[name] for name in ("weights", "idf", "dense", "bias")))


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

    used = np.flatnonzero(np.bincount(data.matrix.indices, minlength=data.matrix.shape[1]) > 1)
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
    return LexicalHead(features, weights[:rows], idf=data.idf, dense=weights[rows:], bias=bias)


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


DIMENSIONS = 256
SMOOTHING = 1e-3
"""Tokens more frequent than this share of all tokens lose at least half their weight."""
MAX_LEVEL = 31
"""Largest absolute value in the table of static vectors. 63 levels compress to 5.3 MB, 255 to 7.0 MB, at the same
accuracy (docs/experiments/router-training.md)."""


def softmax(logits: Floats) -> Floats:
    """Softmax over the last axis."""
    one = logits.ndim == 1  # a request; then half the time
    exponentials: Floats = np.exp(logits - (logits[logits.argmax()] if one else logits.max(-1, keepdims=True)))
    exponentials /= np.add.reduce(exponentials, axis=-1, keepdims=True)
    return exponentials


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
        self._tables: KernelTables | None = (
            None
            if kernel is None
            else kernel.Tables(
                tokens=np.ascontiguousarray(self._tokens),
                scales=np.ascontiguousarray(static.scales, dtype=np.float32),
                directions=np.ascontiguousarray(self._directions, dtype=np.float32),
                static_bias=np.ascontiguousarray(self._static_bias, dtype=np.float32),
                terms=np.ascontiguousarray(self._terms).view(np.uint16),
                function_words=np.ascontiguousarray(self._function_word_weights, dtype=np.float32),
                log_counts=self._log_counts,
            )
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
