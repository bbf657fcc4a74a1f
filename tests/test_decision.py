"""decide(): eligibility, pins, uncertainty and fallback order; affinity and the routed text."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coe.core import Prediction
from coe.errors import InvalidRequest, ModelNotFound
from coe.planning.problem import declared_assignment, relative_cost
from coe.routing.decision import decide
from coe.routing.request_text import routing_text, shorten
from tests.decisions import CATEGORIES, chat_of, decided
from tests.fakes import registry_of


def test_the_expert_of_the_most_likely_category_comes_first_and_the_others_in_order_of_utility() -> None:
    decision = decided(chat_of("x"), 0.2, 0.7, 0.1)
    assert decision.candidates == ("painter", "coder", "generalist")
    assert (decision.expert, decision.category, decision.reason) == ("painter", "art", "routed")
    assert decision.confidence == pytest.approx(0.7)
    assert decision.propensity == 1.0


def test_an_expert_of_two_categories_has_their_joint_probability() -> None:
    both = {"code": "coder", "general": "coder", "art": "painter"}
    decision = decided(chat_of("x"), 0.3, 0.4, 0.3, assignment=both)
    assert decision.expert == "coder"
    assert decision.category == "art"


def test_an_uncertain_request_goes_to_the_general_expert_and_keeps_the_other_candidates() -> None:
    decision = decided(chat_of("x"), 0.4, 0.35, 0.25, policy={"confidence_threshold": 0.5})
    assert decision.reason == "uncertain"
    assert decision.candidates == ("generalist", "coder", "painter")


def test_an_uncertain_request_goes_to_the_planned_expert_of_general() -> None:
    registry = registry_of(assignment={})
    declared = declared_assignment(registry, CATEGORIES)
    assert set(declared.choice) == {"coder"}  # the first expert, until a plan decides
    planned = replace(declared, choice=("coder", "coder", "painter"), quality=np.full((3, 3), 0.5))
    prediction = Prediction(np.array([0.4, 0.3, 0.3], dtype=np.float32), "test")
    parts: Any = {"registry": registry, "confidence_threshold": 0.5}
    before = decide(chat_of("x"), prediction, assignment=declared, **parts)
    now = decide(chat_of("x"), prediction, assignment=planned, **parts)
    assert [(one.expert, one.reason) for one in (before, now)] == [("coder", "uncertain"), ("painter", "uncertain")]


def test_an_out_of_distribution_text_is_uncertain_however_clear_its_category_seems() -> None:
    decision = decided(chat_of("x"), 0.0, 1.0, 0.0, in_distribution=0.3, policy={"confidence_threshold": 0.5})
    assert (decision.reason, decision.expert) == ("uncertain", "generalist")
    assert decision.confidence == pytest.approx(0.3)


def test_the_confidence_threshold_is_the_trained_one_unless_the_policy_declares_one() -> None:
    assert decided(chat_of("x"), 0.4, 0.35, 0.25, confidence_threshold=0.5).reason == "uncertain"
    assert decided(chat_of("x"), 0.4, 0.35, 0.25, confidence_threshold=0.3).reason == "routed"
    assert (
        decided(chat_of("x"), 0.4, 0.35, 0.25, confidence_threshold=0.5, policy={"confidence_threshold": 0}).reason
        == "routed"
    )
    assert decided(chat_of("x"), 0.4, 0.35, 0.25, policy={"confidence_threshold": 0.5}).reason == "uncertain"


def test_an_expert_without_a_needed_capability_is_never_a_candidate() -> None:
    assert decided(chat_of("x", needs=frozenset({"images"})), 0.9, 0.05, 0.05).candidates == ("painter",)


def speakers(**languages: list[str]) -> list[dict[str, object]]:
    """Experts of the three categories, with these languages."""
    hosting = {"model": "m", "runtime": "external", "base_url": "http://h/v1"}
    names = ("coder", "painter", "generalist")
    declared = {name: {"languages": languages[name]} if name in languages else {} for name in names}
    return [{"name": name, **hosting, **declared[name]} for name in names]


@pytest.mark.parametrize(
    ("language", "candidates"),
    [
        ("de", ("coder", "painter", "generalist")),
        ("en", ("coder", "painter", "generalist")),
        ("fr", ("painter", "generalist")),
        ("und", ("coder", "painter", "generalist")),
        ("", ("coder", "painter", "generalist")),
    ],
)
def test_a_request_goes_to_experts_that_speak_its_language(language: str, candidates: tuple[str, ...]) -> None:
    experts = speakers(coder=["de", "en"])
    assert decided(chat_of("x"), 0.7, 0.2, 0.1, experts=experts, language=language).candidates == candidates


def test_a_language_that_no_expert_speaks_excludes_none() -> None:
    experts = speakers(coder=["de"], painter=["en"], generalist=["en"])
    assert decided(chat_of("x"), 0.7, 0.2, 0.1, experts=experts, language="th").expert == "coder"


def test_a_pinned_expert_answers_in_any_language() -> None:
    decision = decided(chat_of("x", model="coder"), 0.1, 0.8, 0.1, experts=speakers(coder=["de"]), language="fr")
    assert (decision.expert, decision.reason) == ("coder", "pinned")


def test_a_chat_that_does_not_fit_goes_to_an_expert_with_a_longer_context() -> None:
    experts = [
        {"name": "coder", "model": "m", "runtime": "external", "base_url": "http://h/v1", "context_length": 100},
        {"name": "generalist", "model": "m", "runtime": "external", "base_url": "http://h/v1", "context_length": 10000},
    ]
    changes = {"experts": experts, "assignment": {"code": "coder", "general": "generalist"}}
    long = chat_of("x", characters=5000)
    assert decided(long, 0.9, 0.05, 0.05, **changes).candidates == ("generalist",)
    pinned = r"coder has a context of 100 tokens and the chat has 5000 characters\. Shorten .* `context_length`"
    with pytest.raises(InvalidRequest, match=pinned):
        decided(chat_of("x", model="coder", characters=5000), 0.9, 0.05, 0.05, **changes)
    with pytest.raises(InvalidRequest, match=r"no expert can take.*Shorten the chat, or raise `context_length`"):
        decided(chat_of("x", characters=500_000), 0.9, 0.05, 0.05, **changes)


def test_a_follow_up_stays_with_its_expert_unless_another_is_clearly_better() -> None:
    near = decided(chat_of("x"), 0.5, 0.4, 0.1, previous="painter")
    assert (near.expert, near.reason) == ("painter", "sticky")
    assert near.candidates == ("painter", "coder", "generalist")
    clear = decided(chat_of("x"), 0.7, 0.2, 0.1, previous="painter")
    assert (clear.expert, clear.reason) == ("coder", "routed")


def test_a_request_that_continues_a_task_stays_whatever_the_utilities() -> None:
    decision = decided(chat_of("x"), 0.98, 0.01, 0.01, previous="painter", continues=True)
    assert (decision.expert, decision.reason) == ("painter", "sticky")
    unknown = decided(chat_of("x"), 0.98, 0.01, 0.01, continues=True)
    assert (unknown.expert, unknown.reason) == ("coder", "routed")


def test_an_uncertain_follow_up_stays_with_its_expert() -> None:
    decision = decided(
        chat_of("x"), 0.4, 0.25, 0.35, previous="painter", policy={"confidence_threshold": 0.5, "sticky_margin": 0}
    )
    assert (decision.expert, decision.reason) == ("painter", "sticky")


def test_a_previous_expert_that_is_not_eligible_does_not_stay() -> None:
    chat = chat_of("x", needs=frozenset({"tools"}))
    assert decided(chat, 0.5, 0.4, 0.1, previous="painter").candidates == ("coder",)


def test_relative_cost_is_by_price_or_else_by_size_and_an_unknown_size_counts_as_the_largest() -> None:
    def costs_of(*experts: dict[str, object]) -> list[float]:
        common = {"model": "m", "runtime": "external", "base_url": "http://h/v1"}
        declared = [{"name": f"e{number}", **common, **expert} for number, expert in enumerate(experts)]
        registry = registry_of(experts=declared, assignment={"general": "e0"})
        return [float(cost) for cost in relative_cost(registry)]

    assert costs_of({"active_parameters_b": 2}, {"active_parameters_b": 8}, {}) == [0.25, 1, 1]
    assert costs_of({"active_parameters_b": 9, "prices": {"input": 1}}, {"prices": {"input": 1, "output": 3}}) == [
        0.25,
        1,
    ]
    assert costs_of({}, {}) == [0, 0]


def test_the_relative_cost_of_an_arm_has_all_calls_of_its_judge() -> None:
    common = {"model": "m", "runtime": "external", "base_url": "http://h/v1"}
    experts = [
        {"name": name, **common, "active_parameters_b": size} for name, size in zip("abcj", (1, 2, 8, 4), strict=True)
    ]
    judged = {"name": "judged", "cascade": ["a", "b", "c"], "signal": "judge", "judge": "j"}
    registry = registry_of(
        experts=experts, assignment={"general": "a"}, recipes=[judged, {"name": "plain", "cascade": ["a", "c"]}]
    )
    names = ("judged", "plain")
    assert relative_cost(registry, names).tolist() == [(1 + 2 + 8 + 2 * 4) / 8, (1 + 8) / 8]


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="known: auto, coder, painter, generalist"):
        decided(chat_of("x", model="gpt"), 0.9, 0.05, 0.05)


def test_the_last_user_message_comes_first_and_older_ones_are_shortened() -> None:
    chat = chat_of(
        "S you are kind and helpful to all",
        "old " * 200,
        "A answer",
        "newer " * 200,
        "and in Python, please, with types and tests?",
    )
    text = routing_text(chat)
    assert text.startswith("and in Python, please")
    assert "answer" not in text
    assert "kind" not in text
    assert 300 < text.count("newer") * 6 < 420
    assert 100 < text.count("old") * 4 < 220


def test_the_system_prompt_is_included_only_with_little_user_text() -> None:
    assert routing_text(chat_of("S you teach chemistry", "next")) == "next\nS you teach chemistry"


def test_routed_text_is_bounded_however_long_the_chat() -> None:
    chat = chat_of(*["word " * 10_000] * 50)
    assert len(routing_text(chat)) < 4000


def test_shortening_keeps_head_and_tail() -> None:
    text = "a" * 100 + "b" * 100
    assert shorten(text, 30) == "a" * 20 + "\n" + "b" * 10
    assert shorten("short", 30) == "short"


def test_the_best_category_and_the_confidence_follow_the_posterior() -> None:
    prediction = Prediction(np.array([0.2, 0.4, 0.4], np.float32), "fast", 0.5)
    other = replace(prediction, probabilities=np.array([0.9, 0.1, 0.0], np.float32))
    assert (prediction.best, prediction.confidence) == (1, float(np.float32(0.4)) * 0.5)  # the first of equal ones
    assert (other.best, other.confidence) == (0, float(np.float32(0.9)) * 0.5)
