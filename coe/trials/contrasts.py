"""Differences of a candidate from the current version, and their tests. Pure functions over NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
SIGNIFICANCE = 0.05
"""Error probability of a series of tests, and the level of the tests for a loss."""
RANDOMIZATIONS = 20_000
"""Random changes of sign in a test of paired differences."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The mean difference, candidate less current, with its standard error and two one-sided p-values.

    `above` is the probability of a difference at least this large if both were equal, `below` of one at most this
    large.
    """

    value: float
    error: float
    above: float
    below: float
    requests: int


def significance_level(number: int) -> float:
    """Return the level of the `number`-th test (from 1) of a series: SIGNIFICANCE / (r (r + 1)).

    The levels of all tests add up to SIGNIFICANCE.
    """
    return SIGNIFICANCE / (number * (number + 1))


def paired_contrast(gain: Array) -> Contrast:
    """Fisher's randomization test of paired gains (n,): signs change at random.

    It is exact for few pairs that differ, like McNemar's test.
    """
    count, changed = len(gain), gain[gain != 0]
    if not len(changed):
        return Contrast(0.0, 0.0, 1.0, 1.0, count)
    rng = np.random.default_rng(0)
    sums = np.concatenate(
        [(rng.integers(0, 2, (RANDOMIZATIONS // 100, len(changed))) * 2 - 1) @ changed for _ in range(100)]
    )
    total = float(changed.sum())
    above, below = (float((1 + (side >= -1e-12).sum()) / (1 + RANDOMIZATIONS)) for side in (sums - total, total - sums))
    bound = float(np.exp(-(total**2) / (2.0 * float((changed**2).sum()))))  # Hoeffding: resolves smaller p-values
    above, below = (min(above, bound), below) if total > 0 else (above, min(below, bound))
    return Contrast(total / count, float(gain.std(ddof=1)) / count**0.5, above, below, count)
