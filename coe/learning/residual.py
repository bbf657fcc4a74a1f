"""The residual: what a prompt's embedding says about its scores beyond the class table, by kernel ridge regression.

The target is a prompt's scores less those of its category in the table, centred over the experts, since only
differences matter. The kernel is exp(SHARPNESS * (cosine - 1)) on embeddings whose layers are centred and of unit
length. Its strength is chosen by the leave-one-out squared error where decisions are made: of the differences between
the table's choice and the experts close to it. The error over all experts chooses a weaker penalty, with which the
residual promises more than it holds among these (docs/experiments/residual-models.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARPNESS = 6.0
STRENGTHS = (4.0, 8.0, 16.0, 32.0)
"""Ridge penalties to choose from; the kernel of a prompt with itself is 1."""
COMPETING = 0.1
"""Quality by which an expert may be below the table's choice and still be its rival; the second best always is."""
MAX_READINGS = 4096
"""Training prompts that are kept; of more, a random sample."""
MAX_AXES = 256
"""Principal axes of the embeddings that are kept; they carry nine tenths of the variance of three layers of MiniLM."""
MIN_ERRORS = 2.0
"""Standard errors by which the error must fall for a residual to be used at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
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
        """Return the readings (n_prompts, n_axes), of at most unit length."""
        return np.asarray(_unit_layers(embeddings, self.centre) @ self.axes)


def _unit_layers(embeddings: NDArray[np.floating], centre: Floats) -> Floats:
    layers = embeddings.reshape(len(embeddings), *centre.shape) - centre
    length = np.maximum(np.linalg.norm(layers, axis=2, keepdims=True), 1e-9) * np.sqrt(len(centre))
    return np.asarray((layers / length).reshape(len(embeddings), -1))


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """Adds `kernel(reading, known) @ weights` to expected quality.

    `known` (n_readings, n_axes) are the training prompts' readings, `weights` has shape (n_readings, n_experts); both
    have no rows where no residual is shown to help. `strength` is the chosen penalty, infinite for none.
    """

    readings: Readings
    known: Floats
    weights: Floats
    strength: float

    def __call__(self, embeddings: NDArray[np.floating]) -> Floats:
        """Return the expected scores beyond the table, shape (n_prompts, n_experts)."""
        return np.asarray(_kernel(self.readings(embeddings), self.known) @ self.weights)


def fit_residual(
    embeddings: NDArray[np.floating], scores: Floats, expected: Floats, *, dimensions: int, seed: int = 0
) -> Residual:
    """Fit to prompts' `embeddings` (n_prompts, layers x dimensions), and their `scores` and `expected` scores.

    Both have shape (n_prompts, n_experts); the expected ones are the table's for the prompt's category. Takes some
    n_prompts^3 operations.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(scores))[:MAX_READINGS])
    readings = Readings.of(embeddings[rows], dimensions)
    known, table = readings(embeddings[rows]), expected[rows]
    target = scores[rows] - table
    target = target - target.mean(axis=1, keepdims=True)
    kernel, best = _kernel(known, known), (float("inf"), np.zeros_like(target))
    least, without = 0.0, _errors(target, table)
    for strength in STRENGTHS:
        inverse = np.linalg.inv(kernel + strength * np.eye(len(rows)))
        weights = inverse @ target
        saved = without - _errors(weights / np.diag(inverse)[:, None], table)
        if saved.sum() > max(least, MIN_ERRORS * float(np.sqrt((saved**2).sum()))):
            least, best = float(saved.sum()), (strength, weights)
    strength, weights = best
    if np.isinf(strength):
        known, weights = known[:0], weights[:0]
    return Residual(readings, known, weights, strength)


def _kernel(left: Floats, right: Floats) -> Floats:
    return np.asarray(np.exp(SHARPNESS * (left @ right.T - 1.0)))


def _errors(error: Floats, table: Floats) -> Floats:
    """Return each prompt's squared error (n_prompts,) of the differences between the table's choice and its rivals."""
    prompts, choice = np.arange(len(table)), table.argmax(axis=1)
    best = table[prompts, choice][:, None]
    second = np.sort(table, axis=1)[:, -2:][:, :1]
    is_rival = table >= np.minimum(best - COMPETING, second)
    differences = error - error[prompts, choice][:, None]
    return np.asarray(np.where(is_rival, differences**2, 0.0).sum(axis=1))
