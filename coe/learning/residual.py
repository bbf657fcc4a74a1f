"""Residual model: predicts each expert's score on a prompt beyond the mean of its category, by kernel ridge regression.

The target is a prompt's scores minus the score table's scores for its category, centred over the experts, because only
differences between experts matter. The kernel is exp(SHARPNESS * (cosine - 1)) on embeddings whose layers are centred
and scaled to unit length.

The ridge penalty minimizes the leave-one-out squared error of the differences between the table's choice
and the other experts, because only these differences change a decision. Minimizing the error over all experts selects a
weaker penalty, which overestimates the differences among the others (docs/experiments/residual-models.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARPNESS = 6.0
PENALTIES = (4.0, 8.0, 16.0, 32.0)
"""Ridge penalties to choose from; the kernel of a prompt with itself is 1."""
MAX_RIVAL_GAP = 0.1
"""Maximum distance in quality below the table's choice at which an expert is a rival. The second best always is one."""
MAX_TRAINING_PROMPTS = 4096
"""Training prompts that are kept; of more, a random sample."""
MAX_AXES = 256
"""Principal axes of the embeddings that are kept; they carry nine tenths of the variance of three layers of MiniLM."""
MIN_GAIN_STANDARD_ERRORS = 2.0
"""Standard errors by which the error must fall for a residual to be used at all."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingProjection:
    """Maps embeddings to centred unit layers along principal axes.

    `centre` has shape (layers, dimensions), `axes` (layers x dimensions, n_axes).
    """

    centre: Floats
    axes: Floats

    @classmethod
    def of(cls, embeddings: NDArray[np.floating], dimensions: int) -> Self:
        """Fit to `embeddings` (n_prompts, layers x dimensions)."""
        centre = embeddings.reshape(len(embeddings), -1, dimensions).mean(axis=0, dtype=np.float64)
        layers = _unit_layers(embeddings, centre)
        _, vectors = np.linalg.eigh(layers.T @ layers)
        return cls(centre, np.ascontiguousarray(vectors[:, ::-1][:, :MAX_AXES]))

    def __call__(self, embeddings: NDArray[np.floating]) -> Floats:
        """Return the projected embeddings (n_prompts, n_axes), of at most unit length."""
        return np.asarray(_unit_layers(embeddings, self.centre) @ self.axes)


def _unit_layers(embeddings: NDArray[np.floating], centre: Floats) -> Floats:
    layers = embeddings.reshape(len(embeddings), *centre.shape) - centre
    length = np.maximum(np.linalg.norm(layers, axis=2, keepdims=True), 1e-9) * np.sqrt(len(centre))
    return np.asarray((layers / length).reshape(len(embeddings), -1))


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """A fitted residual model: `kernel(projection(embeddings), known) @ weights` is added to expected quality.

    `known` (n_training, n_axes) are the projected training prompts and `weights` (n_training, n_experts) their
    coefficients. Both have no rows if no penalty reduced the error enough.
    """

    projection: EmbeddingProjection
    known: Floats
    weights: Floats

    def __call__(self, embeddings: NDArray[np.floating]) -> Floats:
        """Return the expected scores beyond the table, shape (n_prompts, n_experts)."""
        return np.asarray(_kernel(self.projection(embeddings), self.known) @ self.weights)


def fit_residual(embeddings: NDArray[np.floating], scores: Floats, expected: Floats, *, dimensions: int) -> Residual:
    """Fit to prompts' `embeddings` (n_prompts, layers x dimensions), and their `scores` and `expected` scores.

    Both have shape (n_prompts, n_experts); the expected ones are the table's for the prompt's category. Takes some
    n_prompts^3 operations.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(scores))[:MAX_TRAINING_PROMPTS])
    projection = EmbeddingProjection.of(embeddings[rows], dimensions)
    known, table = projection(embeddings[rows]), expected[rows]
    target = scores[rows] - table
    target = target - target.mean(axis=1, keepdims=True)
    kernel, best = _kernel(known, known), Residual(projection, known[:0], target[:0])
    least, without = 0.0, _errors(target, table)
    for penalty in PENALTIES:
        inverse = np.linalg.inv(kernel + penalty * np.eye(len(rows)))
        weights = inverse @ target
        saved = without - _errors(weights / np.diag(inverse)[:, None], table)
        if saved.sum() > max(least, MIN_GAIN_STANDARD_ERRORS * float(np.sqrt((saved**2).sum()))):
            least, best = float(saved.sum()), Residual(projection, known, weights)
    return best


def _kernel(left: Floats, right: Floats) -> Floats:
    return np.asarray(np.exp(SHARPNESS * (left @ right.T - 1.0)))


def _errors(error: Floats, table: Floats) -> Floats:
    """Return each prompt's squared error (n_prompts,) of the differences between the table's choice and the other
    experts."""
    prompts, choice = np.arange(len(table)), table.argmax(axis=1)
    best = table[prompts, choice][:, None]
    second = np.sort(table, axis=1)[:, -2:][:, :1]
    is_rival = table >= np.minimum(best - MAX_RIVAL_GAP, second)
    differences = error - error[prompts, choice][:, None]
    return np.asarray(np.where(is_rival, differences**2, 0.0).sum(axis=1))
