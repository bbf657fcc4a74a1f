"""Feedback on an answer, and what it says about the expert: a reward in [0, 1], or a corrected category."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from coe.errors import InvalidRequest

Kind = Literal["score", "thumb", "preferred", "category", "regenerated", "abandoned"]
KINDS: tuple[Kind, ...] = get_args(Kind)
RATINGS: tuple[Kind, ...] = ("score", "thumb", "preferred")
"""What people said of an answer, surest first; the surest one given counts."""
LONGEST = 128
"""Characters of an id or a name in feedback."""

WEIGHT: Mapping[Kind, float] = MappingProxyType(
    {"score": 1.0, "thumb": 1.0, "preferred": 0.5, "category": 0.0, "regenerated": 0.2, "abandoned": 0.1}
)
"""How much each kind counts as evidence of quality, a score being 1. A preference says who is better, not how good; a
second try or a closed window may have any reason, and nobody signals content in such a way."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One event about one request; the same `event_id` is the same event, however often it arrives.

    `value` goes by `kind`: a number from 0 to 1 (score), 1 up or -1 down (thumb), the name of the expert that should
    have answered (preferred), the category that the request belongs to (category), None for the implicit signals
    regenerated and abandoned. `time` is in Unix seconds; `tenant` and `key` name who sent it. Raises InvalidRequest
    for anything else.
    """

    event_id: str
    request_id: str
    time: float
    kind: Kind
    value: float | str | None = None
    tenant: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequest(f"kind: {self.kind!r} is none of {', '.join(KINDS)}", param="kind")
        for name in ("event_id", "request_id"):
            if not 0 < len(getattr(self, name)) <= LONGEST:
                raise InvalidRequest(f"{name}: must have 1 to {LONGEST} characters", param=name)
        if not math.isfinite(self.time):
            raise InvalidRequest(f"time: {self.time} is no time", param="time")
        rule, fits = _VALUES[self.kind]
        if not fits(self.value):
            raise InvalidRequest(f"value: {self.value!r} does not fit {self.kind}, which takes {rule}", param="value")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_VALUES: Mapping[Kind, tuple[str, Callable[[object], bool]]] = {
    "score": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),  # type: ignore[operator]
    "thumb": ("1 or -1", lambda value: _is_number(value) and value in (1, -1)),
    "preferred": ("the name of an expert", _is_name),
    "category": ("the name of a category", _is_name),
    "regenerated": ("no value", lambda value: value is None),
    "abandoned": ("no value", lambda value: value is None),
}


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
