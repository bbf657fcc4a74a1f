"""Tests that a recipe loses at most `max_loss` of quality against its last step: before service, and in service.

Before service, `coe plan` tests the thresholds of a recipe in fixed sequence. They are ordered from the one that
continues most often to the one that continues least often. Each is tested in turn: "the mean loss is above `max_loss`"
must be rejected at level 5 %. The first threshold that fails ends the sequence, so the probability of accepting any
threshold that breaks the bound is at most 5 % (Angelopoulos et al. 2021, Learn then Test). The test is a betting test
for the mean of bounded variables, valid for any number of prompts (Waudby-Smith and Ramdas 2024).

In service, `LossTest` follows audited answers, at any time (an e-process). The hypothesis is that the expected loss of
an answer is at most `max_loss`, given all earlier answers. Service has no labels. So the loss of an audited answer is
taken as c if it differs from the answer after the last step, and as 0 otherwise. c is an upper confidence bound of the
loss per difference, measured by `coe plan`. It is capped, so that a recipe whose answers differ as often as on the
probes does not count as broken. The hypothesis becomes: the rate of differences is at most `max_loss` / c. Where the
cap applies, the test is about that rate, and not about the loss.

A capital of 1 bets against it before each audited answer. For an alternative rate, an answer multiplies the capital by
its probability under the alternative over that under the hypothesis, which is a bet 1 + b (loss - max_loss). The
capital is averaged over several alternatives. Under the hypothesis its mean never exceeds 1, so by Ville's inequality
it reaches 20 at any time with a probability of at most 5 % (Waudby-Smith and Ramdas 2024; Ramdas et al. 2023).

The draw of an audit does not depend on the request, so audited answers need no weights. An audit that is skipped does
not count, since that is decided before any comparison. Answers after the last step count with a loss of 0. Failed and
cancelled audits count with a loss of 0 too, which can only delay the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.experts.recipes.agreement import Array

LEVEL = 0.05
"""Largest probability that an accepted threshold breaks the bound."""
MAX_BET = 0.75
"""Largest share of the test's capital that one prompt can lose."""
BISECTION_STEPS = 20
"""Halvings of the interval in which a confidence bound is searched."""
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

    `losses` and `differs` (n_prompts,) are of an arm that keeps the bound. c is an upper confidence bound (95 %) of the
    mean loss per difference. It is capped at `max_loss` divided by the upper confidence bound of the rate of
    differences. Where the cap applies, c is a calibration and not a bound of the loss: a recipe whose answers differ as
    often as on these prompts does not count as broken, and `LossTest` tests the rate of differences.
    """
    by_rate = max_loss / upper_mean(differs.astype(np.float64))
    return float(np.clip(min(upper_mean(losses[differs]), by_rate), 0.0, 1.0))


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


# ------------------------------------------------------------------------------------------------- the test in service

LIMIT = 20.0
"""Capital at which the bound counts as broken, with 95 % confidence."""
ALTERNATIVES = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Rates of differences that the capital bets on, as multiples of the largest rate that keeps the bound."""


def capital(audited: NDArray[np.integer] | int, differed: NDArray[np.integer] | int, rate: float) -> Array:
    """Return the capital after `audited` answers, of which `differed` differ; any shape.

    `rate` is the largest rate of differences under the hypothesis. From 1 on no rate breaks the bound, and the capital
    stays 1.
    """
    count, found = np.asarray(audited, dtype=np.float64), np.asarray(differed, dtype=np.float64)
    if rate >= 1.0:
        return np.ones(np.broadcast(count, found).shape)
    rates = np.minimum(np.array(ALTERNATIVES) * rate, (1.0 + rate) / 2)
    won, lost = np.log(rates / rate), np.log((1.0 - rates) / (1.0 - rate))
    logs = found[..., np.newaxis] * won + (count - found)[..., np.newaxis] * lost
    return np.asarray(np.exp(np.minimum(logs, 700.0)).mean(axis=-1))


@dataclass(slots=True)
class LossTest:
    """The test of one recipe in service. `largest` is the largest capital so far."""

    max_loss: float
    loss_per_difference: float
    audited: int = 0
    differed: int = 0
    largest: float = 1.0

    @property
    def rate(self) -> float:
        """The largest rate of differences that keeps the bound."""
        return self.max_loss / self.loss_per_difference if self.loss_per_difference > 0 else 1.0

    @property
    def loss(self) -> float:
        """The estimated loss of an answer; 0 before the first one."""
        return self.loss_per_difference * self.differed / max(self.audited, 1)

    @property
    def broken(self) -> bool:
        """True once the capital has reached the limit, even if it falls below it later."""
        return self.largest >= LIMIT

    def add(self, *, differs: bool) -> None:
        """Count one audited answer."""
        self.audited += 1
        self.differed += differs
        self.largest = max(self.largest, float(capital(self.audited, self.differed, self.rate)))
