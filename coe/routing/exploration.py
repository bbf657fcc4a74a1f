"""Exploration: select another expert of nearly the same utility for a share of requests, with exact propensities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def propensities(utility: NDArray[np.floating], *, rate: float, loss: float) -> NDArray[np.float64]:
    """Return the selection probability of each expert, shape (n_experts,), or (n, n_experts) for n requests.

    `utility` is expected quality minus price, -inf for an expert that may not answer. With probability `rate`, one of
    the other experts within `loss` of the best is selected uniformly; otherwise the best one, or uniformly one of
    several equal best ones. Off-policy estimates use these probabilities as exact weights. Raises ValueError if no
    expert may answer.
    """
    best = utility.max(axis=-1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError("no expert may answer")
    is_best = utility == best
    explored = (utility >= best - loss) & np.isfinite(utility) & ~is_best
    count = explored.sum(axis=-1, keepdims=True)
    explored_mass = np.where(count > 0, rate, 0.0)
    best_probability = (1.0 - explored_mass) / is_best.sum(axis=-1, keepdims=True)
    other_probability = np.where(explored, explored_mass / np.maximum(count, 1), 0.0)
    return np.asarray(np.where(is_best, best_probability, other_probability))


def choose(utility: NDArray[np.floating], *, rate: float, loss: float, uniform: float) -> tuple[int, float]:
    """Return the index of the selected expert and its propensity; `uniform` is drawn from [0, 1)."""
    probabilities = propensities(utility, rate=rate, loss=loss)
    bounds = np.cumsum(probabilities)
    index = int(np.searchsorted(bounds, uniform * bounds[-1], side="right"))
    return index, float(probabilities[index])
