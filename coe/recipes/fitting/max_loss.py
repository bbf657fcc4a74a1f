"""Tests that a recipe loses at most `max_loss` of quality against its last step.

`coe plan` and `coe retrain` test the thresholds of a recipe in fixed sequence. They are ordered from the one that
continues most often to the one that continues least often. Each is tested in turn: "the mean loss is above `max_loss`"
must be rejected at level 5 %. The first threshold that fails ends the sequence, so the probability of accepting any
threshold that breaks the bound is at most 5 % (Angelopoulos et al. 2021, Learn then Test). The test is a betting test
for the mean of bounded variables, valid for any number of prompts (Waudby-Smith and Ramdas 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coe.recipes.agreement import Array

LEVEL = 0.05
"""Largest probability that an accepted threshold breaks the bound."""
MAX_BET = 0.75
"""Largest share of the test's capital that one prompt can lose."""
ORDERS = 8
"""Random orders of the prompts over which the evidence is averaged, so that it hardly depends on their order."""


def loss_p_value(losses: Array, max_loss: float) -> float:
    """Return a p-value of "the mean loss is at least `max_loss`"; losses (n_prompts,) lie in [-1, 1].

    The capital grows when losses stay below `max_loss`: each prompt multiplies it by 1 + bet * (max_loss - loss), with
    a bet that depends on earlier prompts only. Under the hypothesis its mean is at most 1 at any time (Ville).
    """
    random = np.random.default_rng(0)
    capital = [_final_capital(losses[random.permutation(len(losses))], max_loss) for _ in range(ORDERS)]
    return float(min(1.0, 1.0 / max(float(np.mean(capital)), 1e-300)))


def _final_capital(losses: Array, max_loss: float) -> float:
    """Return the capital after all prompts, in one order. Each bet depends on earlier prompts only, and approximately
    maximises the expected logarithm of the capital."""
    if not len(losses):
        return 1.0
    gain = max_loss - losses
    count = np.arange(1, len(gain) + 1)
    mean = np.concatenate(([0.0], (np.cumsum(gain) + 0.5 * max_loss)[:-1] / (count[:-1] + 1)))
    spread = np.concatenate(([0.25], (np.cumsum((gain - mean) ** 2) + 0.25)[:-1] / (count[:-1] + 1)))
    bets = np.clip(mean / (spread + mean**2), 0.0, MAX_BET / (1.0 - max_loss))
    return float(np.exp(min(np.log1p(bets * gain).sum(), 700.0)))  # no overflow


def accepted_thresholds(losses: Sequence[Array], max_loss: float) -> int:
    """Return the number of accepted thresholds of a sequence, which is ordered from the safest to the cheapest.

    `losses` holds the losses (n_prompts,) of each threshold against the last step, on the same prompts.
    """
    failed = (number for number, one in enumerate(losses) if loss_p_value(one, max_loss) > LEVEL)
    return next(failed, len(losses))
