"""Standard errors of means and of paired differences, where a prompt may be held out in several random splits.

The scores of one prompt in several splits depend on each other, so errors are clustered by prompt. A difference below
two standard errors is called level: the data do not show which of two methods is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL_ERRORS = 2.0
"""Standard errors below which a difference is level."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference and its standard error, NaN if unknown."""

    value: float
    error: float

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `level`; level too where the error is unknown."""
        if not abs(self.value) >= LEVEL_ERRORS * self.error or self.value == 0:
            return "level"
        return "better" if self.value > 0 else "worse"

    def to_json(self) -> dict[str, float | str | None]:
        error = self.error if np.isfinite(self.error) else None
        return {"difference": self.value, "standard_error": error, "verdict": self.verdict}


def clustered_mean(values: Sequence[NDArray[np.floating]], prompts: Sequence[NDArray[np.integer]]) -> Difference:
    """Return the mean of all values with its standard error, clustered by prompt.

    `values` and `prompts` have one array for each split, of shape (n_held_out,): a value, and the index of its prompt.
    """
    value, prompt = np.concatenate(values).astype(np.float64), np.concatenate(prompts)
    mean = float(value.mean())
    deviation = np.bincount(prompt, value - mean)
    clusters = len(np.unique(prompt))
    if clusters < 2:
        return Difference(mean, float("nan"))
    return Difference(mean, float(np.sqrt((deviation**2).sum() * clusters / (clusters - 1)) / len(value)))


def paired_difference(
    ours: Sequence[NDArray[np.floating]], theirs: Sequence[NDArray[np.floating]], prompts: Sequence[NDArray[np.integer]]
) -> Difference:
    """Return the mean of `ours` less `theirs` on the same prompts; shapes as in `clustered_mean`."""
    return clustered_mean([one - other for one, other in zip(ours, theirs, strict=True)], prompts)
