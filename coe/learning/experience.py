"""Defines experience: the routing log joined with its feedback, as arrays that estimates and fits read.

Feedback becomes a reward in [0, 1] for the expert that answered, and a weight by its kind. The answer of a recipe
counts for the arm that was selected, not for the member that wrote it: the arm is what a plan selects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.records.feedback import FEEDBACK_KINDS, Feedback, FeedbackKind

RATING_KINDS: tuple[FeedbackKind, ...] = ("score", "thumb", "preferred")
"""Explicit ratings of an answer, most reliable first; the most reliable one counts."""

KIND_WEIGHT: Mapping[FeedbackKind, float] = MappingProxyType(
    {"score": 1.0, "thumb": 1.0, "preferred": 0.5, "category": 0.0, "regenerated": 0.2, "abandoned": 0.1}
)
"""Weight of each kind as evidence of quality; a score has 1. A preference shows which expert is better, not how good it
is. Retries and aborted answers can have other reasons, and never show satisfaction; they count even less where few
requests are rated (`Experience.weight`)."""


def certainty_rank(kind: FeedbackKind) -> int:
    """The rank of a kind as evidence of quality, 0 the most reliable; of several feedbacks the best kind counts."""
    return (*RATING_KINDS, "regenerated", "abandoned", "category").index(kind)


def precedence(feedback: Feedback) -> tuple[int, float, str]:
    """Sort key of several feedbacks on one request: the most reliable kind counts, then the latest event."""
    return -certainty_rank(feedback.kind), feedback.time, feedback.event_id


def reward(feedback: Feedback, *, expert: str) -> float:
    """The reward that the event gives the answer of `expert`, 0 to 1; NaN where it gives none.

    A score is its own reward. A thumb up gives 1, a thumb down 0. A preference gives 1 to the expert or
    recipe that it names, and 0 to any other. A retry or an aborted answer gives 0, at a small KIND_WEIGHT.
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
"""The index of nothing, in a column of indices."""
_WEIGHTS = np.array([*(KIND_WEIGHT[kind] for kind in FEEDBACK_KINDS), 0.0])  # the last is for NONE
_RATED = np.array([*(kind in RATING_KINDS for kind in FEEDBACK_KINDS), False])


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """Logged experience as arrays: n requests in the order of the log, m categories, k experts.

    Indices are into the tuples of names.

    `posterior` (n, m) is float32; `chosen` (n,) is the expert that answered, `allowed` (n, k) are those that could
    have. `propensity` (n,) is the probability with which it was chosen, NaN where expected quality did not decide
    (pinned, rule, sticky, uncertain, spilled, fallback): fits use such requests, off-policy estimates cannot. `reward`
    (n,) is 0 to 1, NaN without feedback; `kind` (n,) is the index into KINDS of its feedback; `corrected` (n,) is the
    corrected category; `tenant` and `version` (of router and configuration) have shape (n,); `time` (n,) is in Unix
    seconds; `identity` (n,) is the digest of the request's id. Indices are NONE where there is nothing.
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

    @classmethod
    def blank(cls, categories: Sequence[str], experts: Sequence[str], count: int) -> Experience:
        """`count` requests to the first expert, with all experts allowed, no feedback and no propensity."""
        return cls(
            categories=tuple(categories),
            experts=tuple(experts),
            tenants=("",),
            versions=("",),
            posterior=np.zeros((count, len(categories)), dtype=np.float32),
            chosen=np.zeros(count, dtype=np.int16),
            allowed=np.ones((count, len(experts)), dtype=np.bool_),
            propensity=np.full(count, np.nan, dtype=np.float32),
            reward=np.full(count, np.nan, dtype=np.float32),
            kind=np.full(count, NONE, dtype=np.int8),
            corrected=np.full(count, NONE, dtype=np.int16),
            tenant=np.zeros(count, dtype=np.int32),
            version=np.zeros(count, dtype=np.int32),
            time=np.zeros(count, dtype=np.float64),
            identity=np.arange(count, dtype=np.uint64),
        )

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def weight(self) -> NDArray[np.float64]:
        """The weight of each request's feedback, shape (n,): 1 for a score, 0 without any.

        Implicit signals are complaints only, and their number grows with an expert's requests. So each is weighted by
        the share of rated requests of its expert and likeliest category: their effect on a mean depends on how often
        there was a complaint, not on how busy the expert is, and no mean rests on complaints alone.
        """
        cell = self.posterior.argmax(axis=1) * len(self.experts) + self.chosen
        count = len(self.categories) * len(self.experts)
        served, rated = np.bincount(cell, minlength=count), np.bincount(cell[self.rated], minlength=count)
        share = rated / np.maximum(served, 1)
        return np.asarray(_WEIGHTS[self.kind] * np.where(self.rated, 1.0, share[cell]))

    @property
    def rated(self) -> NDArray[np.bool_]:
        """Marks requests with an explicit rating, shape (n,). Implicit signals do not count, since they are complaints
        only."""
        return np.asarray(_RATED[self.kind])

    @property
    def usable_off_policy(self) -> NDArray[np.bool_]:
        """Requests that off-policy estimates may use, shape (n,): rated, and with a known propensity."""
        return np.asarray(self.rated & (self.propensity > 0))

    def by_tenant(self, among: NDArray[np.bool_]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each tenant's index and the rows of its requests within the mask, in order; none without any."""
        rows = np.flatnonzero(among)
        rows = rows[np.argsort(self.tenant[rows], kind="stable")]
        for part in np.split(rows, np.flatnonzero(np.diff(self.tenant[rows])) + 1):
            if len(part):
                yield int(self.tenant[part[0]]), part

    def part(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Experience:
        """The requests of a mask or an array of indices."""
        columns = ((f.name, getattr(self, f.name)) for f in fields(self))
        chosen: dict[str, Any] = {name: column[rows] for name, column in columns if isinstance(column, np.ndarray)}
        return replace(self, **chosen)
