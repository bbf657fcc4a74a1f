"""Exploration: now and then another expert that is expected to be hardly worse, with the exact probability of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def propensities(utility: NDArray[np.floating], *, rate: float, loss: float) -> NDArray[np.float64]:
    """The probability of each expert, summing to 1; shape (n_experts,), or (n, n_experts) for n requests at once.

    `utility` is the expected quality less price of each, -inf for one that may not answer. With probability `rate` one
    of the others within `loss` of the best is chosen, each as likely; else the best, or evenly one of those that tie
    for it. So an estimate of another policy has exact weights. Raises ValueError where no expert may answer."""
    best = utility.max(axis=-1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError("no expert may answer")
    first = utility == best
    others = (utility >= best - loss) & np.isfinite(utility) & ~first
    count = others.sum(axis=-1, keepdims=True)
    spread = np.where(count > 0, rate, 0.0)
    firsts = (1.0 - spread) / first.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(first, firsts, np.where(others, spread / np.maximum(count, 1), 0.0)))


def choose(utility: NDArray[np.floating], *, rate: float, loss: float, uniform: float) -> tuple[int, float]:
    """The expert's index and its propensity, by a number drawn uniformly from [0, 1)."""
    chances = propensities(utility, rate=rate, loss=loss)
    bounds = np.cumsum(chances)
    index = int(np.searchsorted(bounds, uniform * bounds[-1], side="right"))
    return index, float(chances[index])
