"""Bounds what a recipe may lose against its last step, with 95 % confidence, by fixed-sequence testing.

The thresholds of a recipe are ordered from the one that continues most often to the one that stops earliest. Each is
tested in turn: "the mean loss is above `max_loss`" must be rejected at level 5 %. The first threshold that fails ends
the sequence, so the probability of accepting any threshold that breaks the bound is at most 5 % (Angelopoulos et al.
2021, Learn then Test). The test is a betting test for the mean of bounded variables, valid for any number of prompts
(Waudby-Smith and Ramdas 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coe.experts.recipes.agreement import Array

LEVEL = 0.05
"""Probability with which an accepted threshold may break the bound."""
MAX_BET = 0.75
"""Largest share of the test's capital that one prompt may lose."""
BISECTION_STEPS = 20
"""Halvings of the interval in which a confidence bound is searched."""
ORDERS = 8
"""Random orders of the prompts over which the evidence is averaged, so that it hardly depends on their order."""


def loss_p_value(losses: Array, max_loss: float, *, seed: int = 0) -> float:
    """Return a p-value of "the mean loss is at least `max_loss`"; losses (n_prompts,) lie in [-1, 1].

    The capital grows when losses stay below `max_loss`: each prompt multiplies it by 1 + bet * (max_loss - loss), with
    a bet that depends on earlier prompts only. Under the hypothesis its mean is at most 1 at any time (Ville).
    """
    random = np.random.default_rng(seed)
    capital = [_final_capital(losses[random.permutation(len(losses))], max_loss) for _ in range(ORDERS)]
    return float(min(1.0, 1.0 / max(float(np.mean(capital)), 1e-300)))


def upper_mean(values: Array) -> float:
    """Return an upper confidence bound (95 %) of the mean of values in [-1, 1], by inverting the test; at most 1."""
    low, high = float(np.mean(values)) if len(values) else 1.0, 1.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        if middle < 1.0 and loss_p_value(values, middle) <= LEVEL:
            high = middle
        else:
            low = middle
    return high


def loss_per_difference(losses: Array, differs: NDArray[np.bool_], max_loss: float) -> float:
    """Return c, the loss assumed in service for an answer that differs from the last step's answer.

    `losses` and `differs` (n_prompts,) are of an arm that keeps the bound. c is an upper confidence value (95 %) of the
    mean loss per difference, but at most the bound over the upper confidence value of the rate of differences. Where
    that cap applies, c is not a confidence value of the loss but a calibration: a recipe whose answers differ as often
    as on these prompts does not count as broken, and the test is about the rate of differences
    (`coe.learning.recipes.loss_test`).
    """
    by_rate = max_loss / upper_mean(differs.astype(np.float64))
    return float(np.clip(min(upper_mean(losses[differs]), by_rate), 0.0, 1.0))


def _final_capital(losses: Array, max_loss: float) -> float:
    """Return the capital after all prompts, in one order; bets are predictable and maximise its expected logarithm."""
    if not len(losses):
        return 1.0
    gain = max_loss - losses
    count = np.arange(1, len(gain) + 1)
    mean = np.concatenate(([0.0], (np.cumsum(gain) + 0.5 * max_loss)[:-1] / (count[:-1] + 1)))
    spread = np.concatenate(([0.25], (np.cumsum((gain - mean) ** 2) + 0.25)[:-1] / (count[:-1] + 1)))
    bets = np.clip(mean / (spread + mean**2), 0.0, MAX_BET / (1.0 - max_loss))
    return float(np.exp(min(np.log1p(bets * gain).sum(), 700.0)))  # no overflow


def accepted_thresholds(losses: Sequence[Array], max_loss: float) -> int:
    """Return how many thresholds keep the bound, of a sequence ordered from the safest to the cheapest.

    `losses` holds the losses (n_prompts,) of each threshold against the last step, on the same prompts.
    """
    for number, one in enumerate(losses):
        if loss_p_value(one, max_loss) > LEVEL:
            return number
    return len(losses)
