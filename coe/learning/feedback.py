"""What feedback says about the expert that answered: a reward in [0, 1], and how much it counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from coe.feedback import Feedback, Kind

RATINGS: tuple[Kind, ...] = ("score", "thumb", "preferred")
"""What people said of an answer, surest first; the surest one given counts."""

WEIGHT: Mapping[Kind, float] = MappingProxyType(
    {"score": 1.0, "thumb": 1.0, "preferred": 0.5, "category": 0.0, "regenerated": 0.2, "abandoned": 0.1}
)
"""How much each kind counts as evidence of quality, a score being 1. A preference says who is better, not how good; a
second try or a closed window may have any reason, and nobody signals content in such a way: these two count still less
where few requests are rated (`Experience.weight`)."""


def rank(kind: Kind) -> int:
    """How sure a kind is as evidence of quality, 0 the surest; the surest that was given counts."""
    return (*RATINGS, "regenerated", "abandoned", "category").index(kind)


def reward(feedback: Feedback, *, expert: str) -> float:
    """What the event says about the answer of `expert`, 0 to 1; NaN where it says nothing of it.

    A score is itself; a thumb up 1, down 0; a preference 1 for the expert that it names and 0 for any other; a second
    try or a broken-off answer 0 (at a small WEIGHT).
    """
    match feedback.kind:
        case "score":
            return float(feedback.value or 0.0)
        case "thumb":
            return 1.0 if feedback.value == 1 else 0.0
        case "preferred":
            return 1.0 if feedback.value == expert else 0.0
        case "category":
            return math.nan
        case _:
            return 0.0
