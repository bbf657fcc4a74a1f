"""The cheap heads as they are served: what they know of a piece lies side by side, so that a text costs few look-ups.

The same arithmetic as LexicalHead, StaticVectors and LinearHead, which training uses, in a third of the time: between
two requests the caches go cold, and then every call and every line of memory counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.calibration import Floats
from routers.heads.lexical import LexicalHead
from routers.heads.linear import LinearHead
from routers.heads.static import StaticVectors
from routers.tokens import FAST_CHARACTERS, truncate_middle


@dataclass(frozen=True, slots=True)
class StaticCentroids:
    """Where the training data lie among static vectors, unit length: `centroids` (n, dimensions) of all of it, `means`
    (n_categories, dimensions) of each category."""

    centroids: Floats
    means: Floats


@dataclass(frozen=True, slots=True)
class FastFeatures:
    """What the cheap heads see of one text: logits (n_categories,), its static vector, and its closeness (2,)."""

    lexical: Floats
    static: Floats
    vector: Floats
    near: tuple[float, float]


class FastHeads:
    """Text to Glance. Thread-safe: nothing changes after construction but what `pieces` remembers, and the last glance,
    since a look at the encoder begins with what a peek has seen a moment ago.

    Terms stay in the files' float16. Static vectors are whole numbers of 8 bits with a scale for each piece, half the
    memory and summed in a third of the time; the error is at most 1/254 of a piece's largest component, and posteriors
    move by .001.
    """

    def __init__(self, lexical: LexicalHead, static: StaticVectors, head: LinearHead, places: StaticCentroids) -> None:
        classes = len(lexical.bias)
        self._pieces = lexical.features.pieces
        self._features = lexical.features
        self._classes = classes
        self._terms = np.column_stack((lexical.weights, lexical.idf, lexical.known)).astype(np.float16)
        self._steps, scales = _whole(static.tokens)
        self._known_pieces = np.column_stack((scales, lexical.features.function_words))
        self._directions = np.concatenate((head.weights.T, places.centroids))
        self._bias = head.bias
        self._start, self._scripts, self._words = lexical.bias, lexical.traits[:-2], lexical.traits[-2:]
        self._ascii_start = lexical.bias + lexical.traits[0]
        self._frequency = (1 + np.log(np.arange(1, FAST_CHARACTERS + 2))).astype(np.float32)
        self._last: tuple[str, FastFeatures] | None = None

    def __call__(self, text: str) -> FastFeatures:
        text = truncate_middle(text, characters=FAST_CHARACTERS)
        last = self._last
        if last is None or last[0] != text:
            last = self._last = (text, self._see(text))
        return last[1]

    def _see(self, text: str) -> FastFeatures:
        ids = self._pieces(text)
        known_pieces = self._known_pieces.take(ids, axis=0)
        vector = known_pieces[:, 0] @ self._steps.take(ids, axis=0).astype(np.float32)
        length = float(vector @ vector) ** 0.5
        if length:
            vector = vector / np.float32(length)
        along = self._directions @ vector
        static = along[: self._classes] + self._bias
        nearest = float(np.maximum.reduce(along[self._classes :]))
        lexical, known = self._look(text, ids, np.add.reduce(known_pieces[:, 1:], axis=0))
        return FastFeatures(lexical, static, vector, (nearest, known))

    def _look(self, text: str, ids: NDArray[np.int64], function_words: Floats) -> tuple[Floats, float]:
        """As LexicalHead.look, with the function words, foreign and English, counted."""
        ascii_only = text.isascii()
        logits = self._ascii_start if ascii_only else self._start + self._features.scripts(text) @ self._scripts
        count = len(ids)
        if not count:
            return logits, 0.0
        rows, counts = _distinct(ids, self._features.pairs(ids))
        found = self._terms.take(rows, axis=0).astype(np.float32)
        weights = self._frequency.take(counts, mode="clip") * found[:, -2]
        squares = weights * weights
        norm = float(np.add.reduce(squares))
        logits = logits + (function_words @ self._words) / np.float32(count)
        logits += (weights @ found[:, :-2]) / np.float32(norm**0.5)
        return logits, float(squares @ found[:, -1]) / norm


def _whole(vectors: Floats) -> tuple[NDArray[np.int8], Floats]:
    """The vectors (n, dimensions) as whole numbers, and by what to multiply each (n,)."""
    largest = np.abs(vectors).max(axis=1).astype(np.float32)
    scales = (np.where(largest > 0, largest, 1) / (2**7 - 1)).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def _distinct(ids: NDArray[np.int64], pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct values among both, and how often each occurs, less one."""
    values = np.concatenate((ids, pairs))
    values.sort()
    first = np.empty(len(values) + 1, dtype=bool)
    first[0] = first[-1] = True
    np.not_equal(values[1:], values[:-1], out=first[1:-1])
    starts = first.nonzero()[0]
    return values.take(starts[:-1]), starts[1:] - starts[:-1] - 1
