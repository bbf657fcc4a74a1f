"""Assignment of requests to conversations, and the expert that is remembered for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from coe.core import Chat, Message, RequestOptions
from coe.routing.conversation import MAX_TURNS, Affinity, Conversation, read_conversation

pytestmark = pytest.mark.anyio

AGENTS = "# AGENTS.md\n\n## Style\n" + "Write short functions and test them. " * 20 + "\n\n## Tests\nRun make test.\n"
CLOCK = "<environment_context>\n  <cwd>/src</cwd>\n  <current_date>2026-11-{day}</current_date>\n</environment_context>"


def chat_of(*turns: str | tuple[str, str], fields: dict[str, Any] | None = None) -> Chat:
    """A chat of turns such as "U hello", "A hi", "S be kind"; a tuple is a tool's result and the id of its call."""
    roles = {"U": "user", "A": "assistant", "S": "system"}
    messages = tuple(
        Message(roles[turn[0]], turn[2:]) if isinstance(turn, str) else Message("tool", *turn) for turn in turns
    )
    return Chat("auto", messages, False, frozenset(), 10, fields or {})


def keys(*turns: str | tuple[str, str], fields: dict[str, Any] | None = None, **options: Any) -> Conversation:
    return read_conversation(chat_of(*turns, fields=fields), RequestOptions(**options))


def follows(later: Conversation, earlier: Conversation) -> bool:
    return not set(earlier.answer).isdisjoint(later.earlier)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["S It is 9:41.", "U hello"], ["S It is 9:42.", "U hello", "A hi", "U and now?"]),
        (
            ["U " + AGENTS, "U " + CLOCK.format(day=1), "U fix it"],
            ["U " + AGENTS, "U " + CLOCK.format(day=2), "U fix it", "A done", "U thanks"],
        ),
        (["U read a", "A "], ["U read a", "A ", ("text of a", "c1")]),
        (["U read a", "A ", ("text of a", "c1")], ["U read a", "A ", ("[cleared]", "c1"), "A ", ("b", "c2")]),
        (["U read both"], ["U read both", "A ", ("a", "c1"), "A ", ("b", "c2")]),  # two calls of one answer
        (
            [f"U turn {n}" for n in range(20)],
            [f"U turn {n}" for n in range(20 - MAX_TURNS, 20)] + ["A answer", "U next"],  # the client forgets
        ),
        (["U hello"], ["U hello", "A hi", "U go on", "A The"]),  # the client begins the answer
        (["U hello"], ["U hello", "A hi", "U another request"]),  # goes on otherwise, from the same answer
    ],
)
def test_a_request_follows_the_one_before_it(before: Sequence[Any], after: Sequence[Any]) -> None:
    assert follows(keys(*after), keys(*before))
    assert keys(*after).prefix == keys(*before).prefix or len(before) > MAX_TURNS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["U " + AGENTS, "U fix the parser"], ["U " + AGENTS, "U write the docs", "A done", "U thanks"]),
        (["U go", "A ", ("same", "c1")], ["U go", "A ", ("same", "c8"), "A ", ("same", "c9")]),
        (["U hello", "A hi", "U some code"], ["U hello", "A hi", "U some art", "A there", "U go on"]),
        (["U [image]"], ["U ", "A hi", "U hello"]),
    ],
)
def test_conversations_of_the_same_beginning_are_told_apart(one: Sequence[Any], other: Sequence[Any]) -> None:
    assert not follows(keys(*other), keys(*one))


def test_an_id_of_a_session_identifies_and_other_ids_only_separate() -> None:
    assert follows(keys("U else", session="s"), keys("U hello", session="s"))
    conversation = {"conversation": {"id": "conv_1"}}
    assert follows(keys("U else", fields=conversation), keys("U hello", fields=conversation))
    assert not follows(keys("U hello", "A hi", "U on", session="t"), keys("U hello", session="s"))
    for name in ("prompt_cache_key", "user", "safety_identifier", "metadata"):
        one, other = ({name: {"user_id": text} if name == "metadata" else text} for text in "ab")
        assert follows(keys("U hello", "A hi", "U on", fields=one), keys("U hello", fields=one)), name
        assert not follows(keys("U hello", "A hi", "U on", fields=other), keys("U hello", fields=one)), name
        assert not follows(keys("U else", "A hi", "U on", fields=one), keys("U hello", fields=one)), name
    odd = {"prompt_cache_key": ["a"], "metadata": {"user_id": 5}, "conversation": 7, "user": None}
    assert keys("U hello", fields=odd) == keys("U hello")


def test_no_tenant_has_the_key_of_another() -> None:
    for session in (None, "s"):
        mine, theirs = (keys("U hello", "A hi", "U on", session=session, tenant=name) for name in ("acme", "other"))
        assert {*mine.answer, *mine.earlier, mine.prefix}.isdisjoint({*theirs.answer, *theirs.earlier, theirs.prefix})


async def test_the_expert_of_the_answer_before_is_found_also_in_a_branch() -> None:
    affinity = Affinity()
    affinity.put(keys("U hello"), "coder")
    affinity.put(keys("U hello", "A hi", "U paint"), "painter")
    assert await affinity.find(keys("U hello", "A hi", "U paint", "A done", "U on")) == "painter"
    assert await affinity.find(keys("U hello", "A hi", "U paint again")) == "coder"
    assert await affinity.find(keys("U hello")) is None


class SharedExpertsStub:
    """SharedExperts with one expert for every conversation, which count lookups."""

    def __init__(self, expert: bytes | None) -> None:
        self.expert, self.lookups, self.published = expert, 0, list[bytes]()

    def put(self, name: str, value: bytes, *, ttl: float) -> None:
        self.published.append(value)

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        self.lookups += 1
        return [None, self.expert, *[None] * (len(names) - 2)]


async def test_the_shared_affinity_is_looked_up_only_after_another_gateways_answer() -> None:
    shared = SharedExpertsStub(b"painter")
    affinity = Affinity(shared=shared)
    turns = ["U one", "A 1", "U two", "A 2", "U three"]
    for length in (1, 3, 5):
        await affinity.find(keys(*turns[:length]))
        affinity.put(keys(*turns[:length]), "coder")
    assert (shared.lookups, shared.published) == (0, [b"coder"] * 3)
    fifth = keys(*turns, "A 3", "U four", "A 4", "U five")  # the fourth answer came from another gateway
    assert (await affinity.find(fifth), shared.lookups) == ("painter", 1)
    shared.expert = None
    assert await affinity.find(fifth) == "coder"  # known from the third
