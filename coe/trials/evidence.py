"""Evidence that one expert answers better than another, valid whenever and however often it is read.

A bettor starts with one unit and bets on a stream of differences, new less old. If the new expert is no better, no
strategy expects to gain, so the wealth is an e-process: it reaches 1 / a, ever, with probability a at most (Ville's
inequality; Waudby-Smith and Ramdas 2024). No look is spent, and 1 / (largest wealth) is a p-value at every look. The
differences are weighted by exact propensities, and bounded below by what any outcome could have been, so that the
guarantee holds at every size of sample. Pure functions over NumPy; n observations in their order, k experts.

`confidence_sequence` gives intervals in place of a verdict, with the same guarantee.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BETS = {0.8: 0.35, 0.4: 0.25, 0.2: 0.18, 0.1: 0.13, 0.05: 0.09}
"""Strategies by the share of their wealth that they may lose in one bet, with the part of the units that each gets."""


def weighted_differences(
    chosen: NDArray[np.integer], reward: Array, propensities: Array, contrast: Array
) -> tuple[Array, Array, Array]:
    """Return an unbiased difference for each observation, and its least and largest possible value, all (n,).

    `reward` is from 0 to 1, `propensities` (n, k) are the probabilities with which each expert could have been chosen,
    positive where the `contrast` (k,) is not 0. The contrast has sum 0: 1 for the new expert, -1 for the old one, or
    its shares. Rewards are centred by the mean of the earlier ones, which is the least noise if both are equal.
    """
    counted = (contrast != 0)[chosen].astype(np.float64)
    before = np.cumsum(counted * reward) - counted * reward
    level = (1.0 + before) / (2.0 + np.cumsum(counted) - counted)
    modelled, policy = (np.broadcast_to(values, propensities.shape) for values in (level[:, None], contrast))
    return doubly_robust(chosen, reward, propensities, modelled, policy)


def doubly_robust(
    chosen: NDArray[np.integer], reward: Array, propensities: Array, modelled: Array, policy: Array
) -> tuple[Array, Array, Array]:
    """Return an unbiased score of a policy for each observation, and its least and largest possible value, all (n,).

    `policy` (n, k) are probabilities of the experts, or a difference of two such. `modelled` (n, k) are the rewards, 0
    to 1, expected before the observation: the better they are, the less noise. A choice that the log could not have
    made (propensity 0) counts as modelled.
    """
    weight = np.divide(policy, propensities, out=np.zeros(policy.shape), where=propensities > 0)
    expected, rows = (policy * modelled).sum(axis=1), np.arange(len(chosen))
    score = expected + weight[rows, chosen] * (reward - modelled[rows, chosen])
    by_reward = -weight * modelled, weight * (1.0 - modelled)  # the corrections for a reward of 0 and of 1
    least, most = np.minimum(*by_reward).min(axis=1, initial=0.0), np.maximum(*by_reward).max(axis=1, initial=0.0)
    return score, expected + least, expected + most


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


WORTH = 0.02
"""The difference that the intervals of a confidence sequence are made for: the fewest observations settle it."""
LOGGED_WORTH = 0.05
"""The same for what is estimated from a log, whose requests are too few and too noisy for less."""
MULTIPLES = {0.8: 0.8, 4.0: 0.07, 16.0: 0.03, 0.25: 0.07, 0.06: 0.03}
"""Bets of a confidence sequence, as multiples of the best one for a difference of WORTH, with the part of each."""
MAX_BET = 0.5
"""Share of the wealth that an observation may cost."""
NEWTON_STEPS = 2


def confidence_sequence(
    scores: Array, least: Array, most: Array, *, error: float = 0.05, worth: float = WORTH
) -> tuple[Array, Array]:
    """Return the lower and upper bounds of the mean of bounded scores after each observation, shapes (n, ..., k).

    With a probability of 1 - `error` all bounds hold, at every look and for all k measures at once. `least` and `most`
    bound each score by what is known before its reward (broadcast to `scores`). Where the mean drifts, the bounds are
    about those of its average so far. Any `worth` is valid; the width does not fall below a sixteenth of it.

    Empirical-Bernstein supermartingales (Howard, Ramdas, McAuliffe and Sekhon 2021; Waudby-Smith and Ramdas 2024), one
    for each of MULTIPLES, whose sum is a bet against every mean outside the interval.
    """
    level = float(np.log(error / (2 * scores.shape[-1])))
    return _lower_bounds(scores, least, level, worth), -_lower_bounds(-scores, -most, level, worth)


class Interval(NamedTuple):
    """A mean and its bounds."""

    value: float
    low: float
    high: float


def policy_interval(
    chosen: NDArray[np.integer], reward: Array, propensities: Array, modelled: Array, policy: Array, *, error: float
) -> Interval:
    """Return the mean reward of a policy, or a difference of two, with the bounds after the last observation.

    Arguments are those of `doubly_robust`. A choice that the log could not have made may have any reward from 0 to 1.
    """
    scores, *bounds = (one[:, None] for one in doubly_robust(chosen, reward, propensities, modelled, policy))
    low, high = (float(one[-1, 0]) for one in confidence_sequence(scores, *bounds, error=error, worth=LOGGED_WORTH))
    missing = policy * (propensities == 0)
    by_reward = -missing * modelled, missing * (1.0 - modelled)
    low += float(np.minimum(*by_reward).sum(axis=1).mean())
    high += float(np.maximum(*by_reward).sum(axis=1).mean())
    return Interval(*np.clip((float(scores.mean()), low, high), -1.0 if (policy < 0).any() else 0.0, 1.0).tolist())


def _lower_bounds(scores: Array, least: Array, level: float, worth: float) -> Array:
    """Return the mean, at each look, against which the bets have earned exactly exp(-level), rounded down."""
    seen = np.arange(1.0, len(scores) + 1).reshape(-1, *[1] * (scores.ndim - 1))

    def before(values: Array, first: Array | float) -> Array:
        return np.concatenate((np.broadcast_to(first, values[:1].shape), values[:-1]))

    guess = before(np.cumsum(scores, axis=0) / (seen + 1), 0.0)
    reach = np.maximum(guess - least, 1e-9)
    widest, square = reach.max(axis=0), (scores - guess) ** 2
    variance = before(np.cumsum(square, axis=0) + widest / 4, widest / 4) / seen
    grown, staked = list[Array](), list[Array]()
    for multiple, part in MULTIPLES.items():
        bet = np.minimum(multiple * worth / variance, MAX_BET / widest)  # of no single request: all count the same
        price = -(np.log1p(-bet * reach) + bet * reach) / reach**2
        grown.append(np.cumsum(bet * scores - price * square, axis=0) + np.log(part) + level)
        staked.append(np.cumsum(bet, axis=0))
    low = np.maximum.reduce([wealth / stake for wealth, stake in zip(grown, staked, strict=True)])
    for _ in range(NEWTON_STEPS):  # convex in the mean, so that each step stays below the root: a valid bound
        shares = [np.exp(wealth - low * stake) for wealth, stake in zip(grown, staked, strict=True)]
        total = sum(shares)
        low = low + total * np.log(total) / sum(share * stake for share, stake in zip(shares, staked, strict=True))
    return np.asarray(low)
