"""Experience: the routing log joined with its feedback, as arrays that estimates and fits read.

What feedback says about the expert that answered: a reward in [0, 1], and how much it counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.records.feedback import FEEDBACK_KINDS, Feedback, FeedbackKind

RATINGS: tuple[FeedbackKind, ...] = ("score", "thumb", "preferred")
"""What people said of an answer, surest first; the surest one given counts."""

WEIGHT: Mapping[FeedbackKind, float] = MappingProxyType(
    {"score": 1.0, "thumb": 1.0, "preferred": 0.5, "category": 0.0, "regenerated": 0.2, "abandoned": 0.1}
)
"""How much each kind counts as evidence of quality, a score being 1. A preference says who is better, not how good; a
second try or a closed window may have any reason, and nobody signals content in such a way: these two count still less
where few requests are rated (`Experience.weight`)."""


def rank(kind: FeedbackKind) -> int:
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


NONE = -1
"""In a column of indices: nothing."""
_WEIGHTS = np.array([*(WEIGHT[kind] for kind in FEEDBACK_KINDS), 0.0])  # the last is for NONE
_RATED = np.array([*(kind in RATINGS for kind in FEEDBACK_KINDS), False])


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """n requests in the order they were logged, m categories, k experts. Indices are into the tuples of names.

    `posterior` (n, m) float32; `chosen` (n,), the expert that answered; `allowed` (n, k), those that could have;
    `propensity` (n,), the probability with which it was chosen, NaN where expected quality did not decide (pinned,
    sticky, uncertain, spilled, fallback): such requests teach, but say nothing about other policies. `reward` (n,) is
    0 to 1, NaN without feedback; `kind` (n,) the index into KINDS of the feedback that it comes from; `corrected` (n,)
    the category that somebody says it is; `tenant` and `version` (of router and configuration) (n,); `time` (n,) in
    Unix seconds; `identity` (n,) the digest of the request's id. Indices are NONE where there is nothing.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    tenants: tuple[str, ...]
    versions: tuple[str, ...]
    posterior: NDArray[np.float32]
    chosen: NDArray[np.int16]
    allowed: NDArray[np.bool_]
    propensity: NDArray[np.float32]
    reward: NDArray[np.float32]
    kind: NDArray[np.int8]
    corrected: NDArray[np.int16]
    tenant: NDArray[np.int32]
    version: NDArray[np.int32]
    time: NDArray[np.float64]
    identity: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def weight(self) -> NDArray[np.float64]:
        """How much each request's feedback counts, shape (n,): 1 for a score, 0 without any.

        Implicit signals only complain, and there are as many of them as an expert has requests. So each counts by the
        share of rated ones among the requests of its expert and likeliest category: what it takes off a mean goes by
        how often there was a complaint, not by how busy the expert is; and nothing rests on complaints alone.
        """
        cell = self.posterior.argmax(axis=1) * len(self.experts) + self.chosen
        count = len(self.categories) * len(self.experts)
        served, rated = np.bincount(cell, minlength=count), np.bincount(cell[self.rated], minlength=count)
        share = rated / np.maximum(served, 1)
        return np.asarray(_WEIGHTS[self.kind] * np.where(self.rated, 1.0, share[cell]))

    @property
    def rated(self) -> NDArray[np.bool_]:
        """Requests that somebody rated, shape (n,). Implicit signals only complain, so no mean may rest on them."""
        return np.asarray(_RATED[self.kind])

    @property
    def telling(self) -> NDArray[np.bool_]:
        """Requests that an estimate of another policy may use, shape (n,): rated, and with a known propensity."""
        return np.asarray(self.rated & (self.propensity > 0))

    def by_tenant(self, among: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each tenant's index and the rows of its requests that the mask names, in their order; none without any."""
        rows = np.flatnonzero(among)
        rows = rows[np.argsort(self.tenant[rows], kind="stable")]
        for part in np.split(rows, np.flatnonzero(np.diff(self.tenant[rows])) + 1):
            if len(part):
                yield int(self.tenant[part[0]]), part

    def part(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Experience:
        """The requests that a mask or an array of indices names."""
        columns = ((f.name, getattr(self, f.name)) for f in fields(self))
        chosen: dict[str, Any] = {name: column[rows] for name, column in columns if isinstance(column, np.ndarray)}
        return replace(self, **chosen)
