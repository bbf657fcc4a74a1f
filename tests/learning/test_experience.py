"""Loading experience: records and feedback are joined in any order and in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.errors import DataError
from coe.learning.experience import LoadedExperience, load_experience
from coe.learning.log_frame import frame_of
from coe.learning.refit import refit
from coe.records.record import FEEDBACK_KINDS, Feedback, FeedbackKind
from tests.learning.samples import CATEGORIES, EXPERTS, record


def joined(records: list[Any], feedback: list[Feedback] | None = None, **options: Any) -> LoadedExperience:
    return load_experience(frame_of([records], [feedback or []], **options), categories=CATEGORIES, experts=EXPERTS)


def event(
    kind: FeedbackKind, value: float | str | None = None, *, at: float = 1.0, to: str = "r", by: str | None = "a"
) -> Feedback:
    return Feedback(f"{kind}-{value}-{at}", to, at, kind, value, tenant=by)


def test_a_record_and_its_feedback_become_one_row() -> None:
    found = joined([record("r", time=7.0)], [event("score", 0.75), event("category", "law")]).experience
    np.testing.assert_allclose(found.posterior, [[0.8, 0.1, 0.1]])
    assert found.chosen.tolist() == [0]
    assert found.allowed.tolist() == [[True, True, False]]
    assert found.propensity.tolist() == pytest.approx([0.9])
    assert found.reward.tolist() == [0.75]
    assert found.kind.tolist() == [FEEDBACK_KINDS.index("score")]
    assert found.corrected.tolist() == [CATEGORIES.index("law")]
    assert found.tenants == ("a",)
    assert found.time.tolist() == [7.0]
    assert found.weight.tolist() == [1.0]
    assert found.usable_off_policy.tolist() == [True]


@pytest.mark.parametrize("reason", ["pinned", "rule", "sticky", "uncertain", "spilled", "fallback", "cached"])
def test_a_choice_that_quality_did_not_make_is_kept_without_a_propensity(reason: str) -> None:
    found = joined([record("r", reason=reason)], [event("score", 1.0)]).experience
    assert np.isnan(found.propensity).all()
    assert found.rated.all()
    assert not found.usable_off_policy.any()


def test_an_abandoned_answer_is_a_weak_complaint_that_any_rating_replaces() -> None:
    others = [record(f"r{number}") for number in range(3)]
    left = [record("r", outcome="aborted"), *others]
    rated = [event("score", 1.0, to=one.request_id) for one in others]
    silent = joined(left, [event("abandoned"), *rated]).experience
    assert silent.reward.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert silent.weight[0] == pytest.approx(0.1 * 3 / 4)
    assert silent.rated.tolist() == [False, True, True, True]
    assert joined(left, [event("abandoned"), event("thumb", 1)]).experience.reward[0] == 1.0


def test_complaints_count_by_their_rate_and_no_mean_rests_on_them_alone() -> None:
    busy = [record(f"b{number}") for number in range(400)]
    idle = [record(f"i{number}", expert="generalist") for number in range(20)]
    odd = [record(f"o{number}", expert="lawyer") for number in range(20)]
    events = [event("score", 0.8, to=f"{who}{number}") for who in "bi" for number in range(10)]
    events += [event("regenerated", to=f"b{number}") for number in range(100, 200)]
    events += [event("regenerated", to=f"i{number}") for number in range(10, 15)]
    events += [event("regenerated", to=f"o{number}") for number in range(5)]
    mean = refit(joined([*busy, *idle, *odd], events).experience, now=1.0).table.mean[0]
    assert mean[0] == pytest.approx(mean[1], abs=0.001)
    assert 0.75 < mean[0] < 0.8
    assert np.isnan(mean[2])


_EVENTS = st.one_of(
    st.builds(lambda v, t: event("score", v, at=t), st.sampled_from((0.0, 0.5, 1.0)), st.sampled_from((1.0, 2.0))),
    st.builds(lambda v, t: event("thumb", v, at=t), st.sampled_from((1, -1)), st.sampled_from((1.0, 2.0, 3.0))),
    st.builds(lambda v, t: event("category", v, at=t), st.sampled_from(CATEGORIES), st.sampled_from((1.0, 2.0))),
    st.builds(lambda t: event("regenerated", at=t), st.sampled_from((1.0, 2.0))),
)


@settings(max_examples=60)
@given(events=st.lists(_EVENTS, max_size=6), data=st.data())
def test_neither_the_order_nor_repetition_of_feedback_matters(events: list[Feedback], data: st.DataObject) -> None:
    again = data.draw(st.permutations(events + events[: len(events) // 2]))
    first, second = (joined([record("r")], list(e)).experience for e in (events, again))
    np.testing.assert_array_equal(first.reward, second.reward)
    np.testing.assert_array_equal(first.kind, second.kind)
    np.testing.assert_array_equal(first.corrected, second.corrected)


def test_unusable_entries_are_left_out_and_counted() -> None:
    records = [
        record("r"),
        record("failed", outcome="expert_timeout"),
        record("gone", expert="poet"),
    ]
    events = [
        event("score", 0.0, to="nobody"),
        event("score", 0.0, by="b"),
        event("score", 0.0, by=None),
        event("category", "poetry"),
    ]
    found = joined(records, events)
    assert len(found.experience) == 1
    assert found.experience.chosen.tolist() == [0]
    assert np.isnan(found.experience.reward).all()
    assert found.left_out == {
        "failed": 1,
        "of an expert that is not declared": 1,
        "feedback for unknown requests": 3,
        "corrections to categories that are not declared": 1,
    }


def test_probability_of_an_undeclared_category_counts_as_general() -> None:
    found = joined([record("r", probabilities={"poetry": 0.5, "general": 0.2, "law": 0.3})]).experience
    np.testing.assert_allclose(found.posterior, [[0.0, 0.7, 0.3]])


def test_only_the_newest_requests_are_kept_and_stay_in_order() -> None:
    records = [record(f"r{i}", time=float(i)) for i in range(7)]
    events = [event("score", 0.5, to=f"r{i}") for i in range(7)]
    found = joined(records, events, limit=3)
    assert found.experience.time.tolist() == [4.0, 5.0, 6.0]
    assert found.experience.reward.tolist() == [0.5] * 3
    assert found.left_out == {}


def test_an_empty_log_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to learn from"):
        joined([record("r", outcome="expert_error")])


def test_a_frame_keeps_the_text_of_requests_with_feedback_and_no_request_of_a_command() -> None:
    records = [
        record("liked", prompt="good"),
        record("silent", prompt="unknown"),
        record("probe", prompt="of a command", purpose="score"),
    ]
    frame = frame_of([records], [[event("thumb", 1, to=name) for name in ("liked", "probe")]])
    assert frame.texts == {"liked": "good"}
    assert frame.table["request_id"].to_pylist() == ["liked", "silent"]
    assert "prompt" not in frame.table.column_names
