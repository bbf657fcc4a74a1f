"""What hangs on knowing a category better: nothing where the same expert is best for all that are likely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coe.mapping.assignment import Assignment, expected

ALIKE = 0.01
"""Units of quality, prices taken off, by which another expert must be better to count as better."""


def stake(assignment: Assignment, posterior: NDArray[np.floating], able: Sequence[int]) -> float:
    """The probability, 0 to 1, that the category is one for which the expert of highest expected quality under
    `posterior`, shape (n_categories,), is not the best one. Among the experts at the indices `able`, at least one."""
    chosen = int(expected(assignment, posterior)[able].argmax())
    worth = (assignment.quality - assignment.price)[:, able]
    better = worth.max(axis=1) > worth[:, chosen] + ALIKE
    return float(posterior[better].sum())
