"""Evidence that one expert answers better than another, valid whenever and however often it is read.

A bettor starts with one unit and bets on a stream of differences, new less old. If the new expert is no better, no
strategy expects to gain, so the wealth is an e-process: it reaches 1 / a, ever, with probability a at most (Ville's
inequality; Waudby-Smith and Ramdas 2024). No look is spent, and 1 / (largest wealth) is a p-value at every look. The
differences are weighted by exact propensities, and bounded below by what any outcome could have been, so that the
guarantee holds at every size of sample. Pure functions over NumPy; n observations in their order, k experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BETS = {0.8: 0.35, 0.4: 0.25, 0.2: 0.18, 0.1: 0.13, 0.05: 0.09}
"""Strategies by the share of their wealth that they may lose in one bet, with the part of the units that each gets."""


def weighted_differences(
    chosen: NDArray[np.integer], reward: Array, propensities: Array, contrast: Array
) -> tuple[Array, Array]:
    """Return an unbiased difference for each observation, and the least value that it could have had, both (n,).

    `reward` is from 0 to 1, `propensities` (n, k) are the probabilities with which each expert could have been chosen,
    positive where the `contrast` (k,) is not 0. The contrast has sum 0: 1 for the new expert, -1 for the old one, or
    its shares. Rewards are centred by the mean of the earlier ones, which is the least noise if both are equal.
    """
    involved = contrast != 0
    weights = np.zeros(propensities.shape)
    np.divide(contrast, propensities, out=weights, where=np.broadcast_to(involved, weights.shape))
    counted = involved[chosen].astype(np.float64)
    before = np.cumsum(counted * reward) - counted * reward
    level = (1.0 + before) / (2.0 + np.cumsum(counted) - counted)
    difference = weights[np.arange(len(chosen)), chosen] * (reward - level)
    losses = np.where(weights > 0, weights * level[:, None], -weights * (1.0 - level[:, None]))
    return difference, -losses.max(axis=1, initial=0.0)


def log_evidence(difference: Array, least: Array) -> Array:
    """Return the logarithm of the e-process of "no mean difference is above 0" after each observation, shape (n,).

    `least` (n,) is below 0, and no difference is below it. The wealth begins with half of the units; a smaller and
    smaller part waits and begins later, so that evidence of a change soon outweighs what was true before.
    """
    count = len(difference)
    begins = -np.log(np.arange(1.0, count + 1)) - np.log(np.arange(2.0, count + 2))  # 1 / (s (s + 1)), which sum to 1
    wealth = np.full(count, -np.inf)
    for bet, part in BETS.items():
        grown = np.cumsum(np.log1p(bet * difference / -least))
        start = begins - np.concatenate(([0.0], grown[:-1]))
        wealth = np.logaddexp(wealth, np.log(part) + grown + np.logaddexp.accumulate(start))
    return wealth
