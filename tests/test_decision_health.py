"""decide() when experts are down, overloaded, or do not support the client's API."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.core import Api, Health
from coe.errors import InvalidRequest
from tests.decisions import DOWN, FULL, chat_of, decided


def test_experts_that_are_down_go_behind_all_that_are_up() -> None:
    decision = decided(chat_of("x"), 0.2, 0.7, 0.1, health_by_expert={"painter": DOWN})
    assert decision.candidates == ("coder", "generalist", "painter")
    assert (decision.reason, decision.fallback_from, decision.cause) == ("fallback", "painter", "circuit_open")
    everyone = dict.fromkeys(("coder", "painter", "generalist"), DOWN)
    assert decided(chat_of("x"), 0.2, 0.7, 0.1, health_by_expert=everyone).candidates == (
        "painter",
        "coder",
        "generalist",
    )


def test_a_follow_up_leaves_an_expert_that_is_down_and_an_uncertain_chat_a_general_expert_that_is_down() -> None:
    decision = decided(chat_of("x"), 0.5, 0.4, 0.1, previous="painter", health_by_expert={"painter": DOWN})
    assert (decision.expert, decision.reason, decision.fallback_from) == ("coder", "fallback", "painter")
    uncertain = decided(
        chat_of("x"), 0.4, 0.35, 0.25, policy={"confidence_threshold": 0.5}, health_by_expert={"generalist": DOWN}
    )
    assert (uncertain.expert, uncertain.reason, uncertain.fallback_from) == ("coder", "fallback", "generalist")
    alone = decided(
        chat_of("x", needs=frozenset({"tools"})), 0.5, 0.4, 0.1, previous="coder", health_by_expert={"coder": DOWN}
    )
    assert (alone.expert, alone.reason) == ("coder", "sticky")


def test_the_request_of_an_overloaded_expert_goes_to_one_that_is_hardly_worse() -> None:
    near = decided(chat_of("x"), 0.41, 0.4, 0.19, health_by_expert={"coder": FULL})
    assert (near.expert, near.reason) == ("painter", "spilled")
    assert near.candidates == ("painter", "coder", "generalist")
    for health_by_expert in (
        {"coder": FULL, "painter": FULL},
        {"coder": FULL, "painter": DOWN},
        {"coder": Health(load=0.9)},
    ):
        assert decided(chat_of("x"), 0.41, 0.4, 0.19, health_by_expert=health_by_expert).expert == "coder"
    all_down = {"coder": Health(False, 1.0), "painter": DOWN, "generalist": DOWN}
    assert decided(chat_of("x"), 0.41, 0.4, 0.19, health_by_expert=all_down).expert == "coder"
    far = decided(chat_of("x"), 0.45, 0.4, 0.15, health_by_expert={"coder": FULL})
    assert (far.expert, far.reason) == ("coder", "routed")
    assert (
        decided(
            chat_of("x"), 0.45, 0.4, 0.15, health_by_expert={"coder": FULL}, policy={"max_quality_loss": 0.1}
        ).reason
        == "spilled"
    )


def test_a_follow_up_leaves_an_overloaded_expert_only_if_the_loss_is_small() -> None:
    stays = decided(chat_of("x"), 0.1, 0.8, 0.1, previous="painter", health_by_expert={"painter": FULL})
    assert (stays.expert, stays.reason) == ("painter", "sticky")
    leaves = decided(chat_of("x"), 0.4, 0.41, 0.19, previous="painter", health_by_expert={"painter": FULL})
    assert (leaves.expert, leaves.reason) == ("coder", "spilled")


def test_only_experts_that_support_the_api_are_candidates() -> None:
    at = {"model": "m", "runtime": "external", "base_url": "http://h/v1"}
    experts = [
        {"name": "generalist", **at},
        {"name": "native", "apis": ["responses"], **at},
        {"name": "vectors", "apis": ["embeddings"], **at},
        {"name": "both", "apis": ["chat", "completions"], **at},
    ]

    def candidates(api: Api) -> set[str]:
        decision = decided(chat_of("x", api=api), 0.4, 0.3, 0.3, experts=experts, assignment={"general": "generalist"})
        return set(decision.candidates)

    assert candidates("chat") == {"generalist", "both"}
    assert candidates("responses") == {"generalist", "native", "both"}
    assert candidates("messages") == {"generalist", "both"}
    assert candidates("embeddings") == {"vectors"}
    assert candidates("completions") == {"both"}
    with pytest.raises(InvalidRequest, match="vectors does not support the chat API"):
        decided(chat_of("x", model="vectors"), 0.4, 0.3, 0.3, experts=experts, assignment={"general": "generalist"})


names = st.sampled_from(["coder", "painter", "generalist"])


@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.dictionaries(names, st.builds(Health, st.booleans(), st.sampled_from([0.0, 0.5, 1.0, 3.0]))),
    st.just("") | names,
    st.sampled_from(["auto", "coder", "generalist"]),
    st.sampled_from([frozenset(), frozenset({"tools"})]),
    st.floats(0, 1),
)
def test_a_decision_is_valid_whatever_the_health_of_experts(
    masses: list[float],
    health_by_expert: dict[str, Health],
    previous: str,
    model: str,
    needs: frozenset[str],
    loss: float,
) -> None:
    eligible = {"coder"} if needs else {"coder", "painter", "generalist"}
    chat = chat_of("x", model=model, needs=needs)
    posterior = [mass / sum(masses) for mass in masses]
    policy = {"max_quality_loss": loss, "confidence_threshold": 0.5}
    if model not in (*eligible, "auto"):
        with pytest.raises(InvalidRequest):
            decided(chat, *posterior, previous=previous, health_by_expert=health_by_expert, policy=policy)
        return
    decision = decided(chat, *posterior, previous=previous, health_by_expert=health_by_expert, policy=policy)
    assert decision == decided(chat, *posterior, previous=previous, health_by_expert=health_by_expert, policy=policy)
    assert decision.expert == decision.candidates[0]
    if model != "auto":
        assert (decision.candidates, decision.reason) == ((model,), "pinned")
        return
    up = [health_by_expert.get(name, Health()).up for name in decision.candidates]
    assert sorted(decision.candidates) == sorted(eligible)
    assert up == sorted(up, reverse=True)
    healthy = decided(chat, *posterior, previous=previous, policy=policy)
    if not health_by_expert:
        assert decision == healthy
    if decision.reason == "spilled":
        assert health_by_expert.get(decision.expert, Health()).load < 1
        assert any(health.load >= 1 for health in health_by_expert.values())
    if decision.reason == "sticky":
        assert decision.expert == previous
