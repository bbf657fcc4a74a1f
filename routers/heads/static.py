"""Static token vectors distilled from a sentence encoder, as in model2vec.

Every token of the vocabulary is encoded alone. The vectors are reduced by PCA, and frequent tokens get lower weights
(smooth inverse frequency, Arora et al. 2017). The vector of a text is the sum of its tokens' vectors at unit length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.files import Arrays

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
