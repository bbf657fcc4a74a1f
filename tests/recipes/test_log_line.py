"""`coe log` shows what a recipe did in one line."""

from coe.cli.log import _line
from coe.records.record import RecipeCall
from tests.records.samples import record


def test_a_line_names_the_calls_their_outcomes_and_why_the_recipe_stopped() -> None:
    calls = (
        RecipeCall("small_a", 0, "unverified", answer_class=0, confidence=0.61, accepted=True),
        RecipeCall("small_b", 0, "answered", answer_class=1, confidence=0.28),
        RecipeCall("small_c", 0, "unreadable"),
        RecipeCall("large", 1, "timeout"),
    )
    line = _line(record(1, recipe="careful", recipe_stop="unavailable", steps=calls))
    shown = "careful unavailable: small_a unverified*, small_b answered, small_c unreadable, large timeout"
    assert line.endswith(shown)


def test_a_request_without_a_recipe_shows_none() -> None:
    assert _line(record(1)).endswith(record(1).request_id)
