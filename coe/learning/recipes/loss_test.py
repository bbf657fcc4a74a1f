"""Tests in service whether a recipe keeps its `max_loss`, from audited answers, at any time (an e-process).

The hypothesis is that the expected loss of an answer is at most `max_loss`, given all earlier answers. Service has no
labels. So the loss of an audited answer is taken as c where it differs from the one after the last step, and 0 where it
does not. c is the upper confidence value of the loss per difference that `coe plan` measured, capped so that a recipe
whose answers differ as often as on the probes does not count as broken. The hypothesis becomes: the rate of differences
is at most `max_loss` / c. Where the cap applies, the test is about that rate, and not about the loss.

A capital of 1 bets against it before each audited answer. For an alternative rate, an answer multiplies the capital by
its probability under the alternative over that under the hypothesis, which is a bet 1 + b (loss - max_loss). The
capital is averaged over several alternatives. Under the hypothesis its mean never exceeds 1, so by Ville's inequality
it reaches 20 at any time with a probability of at most 5 % (Waudby-Smith and Ramdas 2024; Ramdas et al. 2023).

The draw of an audit does not depend on the request, so audited answers need no weights. An audit that is skipped does
not count: that is decided before any answer is compared. Answers of requests that reached the last step count, without
a loss. So do failed and cancelled audits, which can only delay the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coe.experts.recipes.agreement import Array

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
    """The test of one recipe. `largest` is the largest capital so far."""

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
        """True from the first time on that the capital reached the limit."""
        return self.largest >= LIMIT

    def add(self, *, differs: bool) -> None:
        """Count one audited answer."""
        self.audited += 1
        self.differed += differs
        self.largest = max(self.largest, float(capital(self.audited, self.differed, self.rate)))
