"""Loads experience: the usable requests of the log's frame and their feedback, as arrays that estimates and fits read.

Feedback becomes a reward in [0, 1] for the expert that answered, and a weight by its kind. The answer of a recipe
counts for the arm that was selected, not for the member that wrote it: the arm is what a plan selects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.core import GENERAL, PASS_THROUGH_APIS
from coe.errors import DataError
from coe.learning.log_frame import LogFrame, indices, numbers
from coe.records.record import FEEDBACK_KINDS, FeedbackKind

RATING_KINDS: tuple[FeedbackKind, ...] = ("score", "thumb", "preferred")
"""Explicit ratings of an answer."""
REASONS_WITH_PROPENSITY = ("routed", "explored")
"""Reasons for which expected quality chose the expert, so that the logged propensity is its probability."""

KIND_WEIGHT: Mapping[FeedbackKind, float] = MappingProxyType(
    {"score": 1.0, "thumb": 1.0, "preferred": 0.5, "category": 0.0, "regenerated": 0.2, "abandoned": 0.1}
)
"""Weight of each kind as evidence of quality; a score has 1. A preference shows which expert is better, not how good it
is. Retries and aborted answers can have other reasons, and never show satisfaction; they count even less where few
requests are rated (`Experience.weight`)."""


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
    (pinned, rule, sticky, uncertain, spilled, fallback): fits use such requests, off-policy estimates cannot.
    `propensities` (n, k) are those of all experts, 0 for one that could not have been chosen. `reward`
    (n,) is 0 to 1, NaN without feedback; `kind` (n,) is the index into KINDS of its feedback; `corrected` (n,) is the
    corrected category; `tenant` has shape (n,); `time` (n,) is in Unix seconds. Indices are NONE for nothing.
    """

    categories: tuple[str, ...]
    experts: tuple[str, ...]
    tenants: tuple[str, ...]
    posterior: NDArray[np.float32]
    chosen: NDArray[np.int16]
    allowed: NDArray[np.bool_]
    propensity: NDArray[np.float32]
    propensities: NDArray[np.float32]
    reward: NDArray[np.float32]
    kind: NDArray[np.int8]
    corrected: NDArray[np.int16]
    tenant: NDArray[np.int32]
    time: NDArray[np.float64]

    @classmethod
    def blank(cls, categories: Sequence[str], experts: Sequence[str], count: int) -> Experience:
        """`count` requests to the first expert, with all experts allowed, no feedback and no propensity."""
        return cls(
            categories=tuple(categories),
            experts=tuple(experts),
            tenants=("",),
            posterior=np.zeros((count, len(categories)), dtype=np.float32),
            chosen=np.zeros(count, dtype=np.int16),
            allowed=np.ones((count, len(experts)), dtype=np.bool_),
            propensity=np.full(count, np.nan, dtype=np.float32),
            propensities=np.zeros((count, len(experts)), dtype=np.float32),
            reward=np.full(count, np.nan, dtype=np.float32),
            kind=np.full(count, NONE, dtype=np.int8),
            corrected=np.full(count, NONE, dtype=np.int16),
            tenant=np.zeros(count, dtype=np.int32),
            time=np.zeros(count, dtype=np.float64),
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


@dataclass(frozen=True, slots=True, eq=False)
class LoadedExperience:
    """The experience, the frame of its requests (row by row the same), and what was left out, counted by reason."""

    experience: Experience
    frame: LogFrame
    left_out: Mapping[str, int] = field(default_factory=dict)


LEFT_OUT = ("failed", "not classified", "of an expert that is not declared")


def load_experience(frame: LogFrame, *, categories: Sequence[str], experts: Sequence[str]) -> LoadedExperience:
    """The experience of a frame over these categories and experts.

    Probabilities of undeclared categories count as general. A score is its own reward; a thumb up gives 1, a thumb down
    0; a preference gives 1 to the expert that it names, 0 to any other; a retry or an aborted answer gives 0. Left out
    and counted are failed requests, requests of undeclared experts, and feedback without a request. Raises DataError
    when nothing is left.
    """
    table = frame.table
    problems = (
        indices(table["outcome"], ("ok", "aborted")) < 0,
        indices(table["api"], sorted(PASS_THROUGH_APIS)) >= 0,
        indices(table["expert"], experts) < 0,
    )
    problem = np.select(problems, np.arange(len(LEFT_OUT)), NONE)
    left_out = {name: int((problem == number).sum()) for number, name in enumerate(LEFT_OUT)} | dict(frame.left_out)
    used = frame.part(problem == NONE)
    table, count = used.table, len(used.table)
    corrected = indices(table["feedback_category"], categories)
    undeclared = len(table) - table["feedback_category"].null_count - int((corrected >= 0).sum())
    left_out["corrections to categories that are not declared"] = undeclared
    left_out = {reason: number for reason, number in left_out.items() if number}
    if not count:
        raise DataError(f"the routing log holds nothing to learn from ({left_out or 'no records'})")
    chosen, rows = indices(table["expert"], experts), np.arange(count)
    candidates = table["candidates"].combine_chunks()
    allowed = np.zeros((count, len(experts) + 1), dtype=np.bool_)  # the last column is of undeclared experts
    allowed[np.repeat(rows, np.diff(candidates.offsets)), indices(candidates.values, experts)] = True
    allowed[rows, chosen] = True
    tenants = table["tenant"].cast("string").fill_null("").combine_chunks().dictionary_encode()
    decided = indices(table["reason"], REASONS_WITH_PROPENSITY) >= 0
    propensity = np.where(decided, numbers(table["propensity"]), np.nan).astype(np.float32)
    logged, propensities = table["propensities"].combine_chunks(), np.zeros(allowed.shape, dtype=np.float32)
    owners = np.repeat(rows, np.diff(logged.offsets))
    places = np.arange(len(owners)) - np.repeat(logged.offsets.to_numpy()[:-1], np.diff(logged.offsets))
    named = indices(candidates.values, experts)[candidates.offsets.to_numpy()[owners] + places]
    propensities[owners, named] = numbers(logged.values)
    propensities[rows, chosen] = np.nan_to_num(propensity)
    kind, value = indices(table["feedback_kind"], FEEDBACK_KINDS), numbers(table["feedback_value"])
    preferred = indices(table["feedback_preferred"], experts) == chosen
    rewards = {"score": value, "thumb": value == 1.0, "preferred": preferred}
    reward = np.select([kind == FEEDBACK_KINDS.index(name) for name in rewards], list(rewards.values()), 0.0)
    experience = Experience(
        categories=tuple(categories),
        experts=tuple(experts),
        tenants=tuple(tenants.dictionary.to_pylist()),
        posterior=posteriors(table, categories).astype(np.float32),
        chosen=chosen.astype(np.int16),
        allowed=allowed[:, :-1],
        propensity=propensity,
        propensities=propensities[:, :-1],
        reward=np.where(kind == NONE, np.nan, reward).astype(np.float32),
        kind=kind.astype(np.int8),
        corrected=corrected.astype(np.int16),
        tenant=tenants.indices.to_numpy().astype(np.int32),
        time=numbers(table["time"]),
    )
    return LoadedExperience(experience, used, left_out)


def posteriors(table: Any, categories: Sequence[str]) -> NDArray[np.float64]:
    """The probabilities of each request over these categories, shape (n, m); those of others count as general."""
    maps, columns = table["probabilities"].combine_chunks(), len(categories)
    column = indices(maps.keys, categories)
    if (column < 0).any():
        column = np.where(column < 0, categories.index(GENERAL), column)
    cell = np.repeat(np.arange(len(maps)), np.diff(maps.offsets)) * columns + column
    sums = np.bincount(cell, weights=maps.items, minlength=len(maps) * columns)
    return np.asarray(sums.reshape(len(maps), columns), dtype=np.float64)
