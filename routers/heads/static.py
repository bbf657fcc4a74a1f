"""Static token vectors distilled from a sentence encoder, after the recipe that model2vec describes.

Every token of the vocabulary is encoded alone, the vectors are reduced by PCA, and frequent tokens are weighted down
(smooth inverse frequency, Arora et al. 2017). A text is the unit-length sum of its tokens' vectors.
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
    """`tokens` of shape (vocabulary, dimensions), float32, already weighted."""

    tokens: NDArray[np.float32]

    def vector(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """One text's unit vector, shape (dimensions,); zero for a text without tokens."""
        total: NDArray[np.float32] = self.tokens[ids].sum(axis=0)
        length = float(total @ total) ** 0.5
        return total / length if length else total

    def vectors(self, texts: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Shape (n_texts, dimensions)."""
        return np.stack([self.vector(ids) for ids in texts])

    def arrays(self) -> Arrays:
        return {"tokens": self.tokens}


def distil(
    encode_tokens: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    frequencies: NDArray[np.int64],
) -> StaticVectors:
    """Token vectors from `encode_tokens` (ids to encoder vectors), weighted by corpus `frequencies` (vocabulary,)."""
    vectors = encode_tokens(np.arange(len(frequencies)))
    reduced = _reduce(vectors, dimensions=min(DIMENSIONS, vectors.shape[1]))
    share = frequencies / max(1, int(frequencies.sum()))
    tokens = reduced * (SMOOTHING / (SMOOTHING + share))[:, None]
    return StaticVectors(tokens=tokens.astype(np.float16).astype(np.float32))


def _reduce(vectors: NDArray[np.float32], *, dimensions: int) -> NDArray[np.float32]:
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    reduced: NDArray[np.float32] = centred @ axes[:, ::-1][:, :dimensions]
    return reduced
