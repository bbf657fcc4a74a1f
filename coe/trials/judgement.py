"""What a candidate must show to replace the version in use, and the contrasts that guard its categories.

A plan's moves have evidence that no look spends (`coe.learning.moves`); a new router is compared with the one in use on
prompts that both left out (`coe.learning.router_comparison`). No guarded category may fall. Pure functions over NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coe.trials.contrasts import SIGNIFICANCE, Contrast, paired_contrast

Array = NDArray[np.float64]
Reason = Literal[
    "better",
    "explored",
    "not better",
    "worse elsewhere",
    "guarded category falls",
    "nothing to judge by",
    "thin support",
    "breaks the budget",
]

HELD_OUT, LOGGED = "held-out set", "logged traffic"
"""Names of the sources of evidence."""
MIN_GUARDED_REQUESTS = 20
"""Requests that the test of a guarded category needs."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The contrast of one source: overall, and in each guarded category."""

    source: str
    overall: Contrast
    guarded: Mapping[str, Contrast] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The decision about a candidate: its reason, and a sentence for the report."""

    reason: Reason
    sentence: str
    evidence: tuple[Evidence, ...] = ()

    @property
    def promote(self) -> bool:
        return self.reason in ("better", "explored")

    def to_json(self) -> dict[str, Any]:
        """The fields that the report of every kind of round has."""
        return {"promoted": self.promote, **asdict(self)}


def held_out_evidence(
    current: Array, candidate: Array, categories: Sequence[str], *, guarded: Sequence[str] = ()
) -> Evidence:
    """Evidence from a fixed set that both were scored on; scores and categories have length n."""
    names, gain = np.asarray(categories), np.asarray(candidate, dtype=np.float64) - current
    by_name = {name: gain[names == name] for name in guarded}
    falls = {name: paired_contrast(part) for name, part in by_name.items() if len(part) >= MIN_GUARDED_REQUESTS}
    return Evidence(HELD_OUT, paired_contrast(gain), falls)


def falling_categories(evidence: Sequence[Evidence]) -> str:
    """The guarded categories that fall significantly (Bonferroni over all of them), as text; empty where none does."""
    tests = sum(len(one.guarded) for one in evidence)
    return "; ".join(
        f"guarded category {name} falls by {-contrast.value:.3f} on the {one.source}"
        for one in evidence
        for name, contrast in one.guarded.items()
        if contrast.below < SIGNIFICANCE / tests
    )
