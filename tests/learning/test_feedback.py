"""Feedback: the values that each kind may have, and the reward that it gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from coe.errors import InvalidRequest
from coe.learning.experience import KIND_WEIGHT, load_experience
from coe.learning.log_frame import frame_of
from coe.records.record import Feedback, FeedbackKind
from tests.learning.samples import CATEGORIES, EXPERTS, record


def feedback(kind: FeedbackKind, value: float | str | None = None, **fields: Any) -> Feedback:
    return Feedback(
        **({"event_id": "e", "request_id": "r", "time": 1.0, "kind": kind, "value": value, "tenant": "a"} | fields)
    )


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("score", 0.25, 0.25),
        ("score", 0, 0.0),
        ("thumb", 1, 1.0),
        ("thumb", -1, 0.0),
        ("preferred", "coder", 1.0),
        ("preferred", "lawyer", 0.0),
        ("regenerated", None, 0.0),
        ("abandoned", None, 0.0),
    ],
)
def test_each_kind_is_a_reward_for_the_expert_that_answered(
    kind: FeedbackKind, value: float | str | None, expected: float
) -> None:
    found = load_experience(
        frame_of([[record("r")]], [[feedback(kind, value)]]), categories=CATEGORIES, experts=EXPERTS
    )
    assert found.experience.reward.tolist() == [expected]


def test_a_corrected_category_is_no_reward() -> None:
    found = load_experience(
        frame_of([[record("r")]], [[feedback("category", "law")]]), categories=CATEGORIES, experts=EXPERTS
    )
    assert np.isnan(found.experience.reward).all()
    assert KIND_WEIGHT["category"] == 0.0


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("score", 1.01),
        ("score", -0.1),
        ("score", math.nan),
        ("score", None),
        ("score", True),
        ("score", "0.5"),
        ("thumb", 0),
        ("thumb", "up"),
        ("preferred", ""),
        ("preferred", 1.0),
        ("category", "x" * 129),
        ("regenerated", 1.0),
    ],
)
def test_a_value_that_does_not_fit_its_kind_is_refused_with_the_rule(
    kind: FeedbackKind, value: float | str | None
) -> None:
    with pytest.raises(InvalidRequest, match=f"does not fit {kind}, which needs") as caught:
        feedback(kind, value)
    assert caught.value.param == "value"


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "stars"), ("event_id", ""), ("request_id", "x" * 129), ("time", math.inf)],
)
def test_other_fields_are_checked_and_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Feedback(**({"event_id": "e", "request_id": "r", "time": 1.0, "kind": "thumb", "value": 1} | {field: value}))
    assert caught.value.param == field
