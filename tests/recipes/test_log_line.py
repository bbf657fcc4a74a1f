"""`coe log` shows what a recipe did in one line."""

import pytest

from coe.cli.log import _audit, _line
from coe.records.feedback import AuditDetail, Feedback
from coe.records.record import RecipeCall
from tests.list_log import ListLog
from tests.records.samples import record

pytestmark = pytest.mark.anyio


def test_a_line_names_the_calls_their_answers_and_why_the_recipe_stopped() -> None:
    calls = (
        RecipeCall("small_a", 0, "unverified", answer_class=0, confidence=0.61, accepted=True),
        RecipeCall("small_b", 0, "answered", answer_class=1, confidence=0.28),
        RecipeCall("small_c", 0, "unreadable"),
        RecipeCall("large", 1, "timeout"),
    )
    line = _line(record(1, recipe="careful", recipe_stop="unavailable", steps=calls))
    shown = "careful unavailable: small_a A 0.61 unverified*, small_b B 0.28, small_c unreadable, large timeout"
    assert line.endswith(shown)


def test_a_request_without_a_recipe_shows_none() -> None:
    assert _line(record(1)).endswith(record(1).request_id)


async def test_the_outcome_of_an_audit_comes_from_the_feedback_log() -> None:
    log = ListLog([])
    detail = AuditDetail("careful", "careful", "p", 0.02)
    audited = record(1, recipe="careful", recipe_stop="accepted", audit="started", audit_rate=0.02)
    assert await _audit(audited, log) == "started"
    log.events = [Feedback("audit", audited.request_id, 1.0, "audit", "differed", audit=detail)]
    assert await _audit(audited, log) == "differed"
    assert await _audit(record(2, audit="skipped_busy"), log) == "skipped_busy"
    assert _line(audited, "differed").endswith("careful accepted: ; audit differed")
