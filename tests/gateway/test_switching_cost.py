"""A change of expert loses the prefix cache; its price counts against the change, in units of quality."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from coe.core import RequestOptions
from coe.mapping import Assignment
from coe.mapping.problem import declared_assignment
from coe.registry import Registry
from coe.routing.conversation import read_conversation
from coe.routing.request_text import read_request
from tests.decisions import CATEGORIES, chat_of, decided
from tests.fakes import gateway_of, registry_of

pytestmark = pytest.mark.anyio

TURNS = ("paint art " * 400, "A Done.", "Write code for a parser of German calendar dates")
HISTORY = len(TURNS[0]) + len(TURNS[1])


def priced(**prices: float) -> Registry:
    """The three experts, where the painter has these prices."""
    experts = [spec.model_dump(exclude_none=True, exclude={"api_key"}) for spec in registry_of().experts]
    experts[1] |= {"prices": prices}
    return registry_of(experts=experts)


def plan_of(registry: Registry, dual: float) -> Assignment:
    return replace(declared_assignment(registry, CATEGORIES), duals={"mean_cost": dual})


async def cost_of(
    registry: Registry, *, dual: float = 0.0, cost_weight: float = 0.0, turns: tuple[str, ...] = TURNS
) -> float:
    chat = replace(chat_of(*turns), characters=sum(map(len, turns)))
    async with gateway_of(registry, assignment=plan_of(registry, dual)) as gateway:
        composition = gateway.serving_state.serving.composition
        options = RequestOptions(cost_weight=cost_weight)
        composition.affinity.put(read_conversation(chat_of(turns[0]), options), "painter")
        routed = read_request(chat).of_topic(opens=True)
        return (
            await composition.continuity.find(chat, read_conversation(chat, options), routed, options)
        ).switching_cost


async def test_the_cost_is_the_discount_on_the_earlier_turns_at_the_price_of_the_plan() -> None:
    registry = priced(input=10, output=30, cached_input=1)
    dollars_per_thousand_requests = HISTORY / 4 * (10 - 1) / 1000
    assert await cost_of(registry, dual=0.02) == pytest.approx(0.02 * dollars_per_thousand_requests)
    share = HISTORY / (HISTORY + len(TURNS[2]))
    assert await cost_of(registry, cost_weight=0.5) == pytest.approx(0.5 * share * (10 - 1) / 40)


@pytest.mark.parametrize(
    ("prices", "dual", "turns"),
    [
        ({"input": 10, "output": 30}, 0.02, TURNS),  # without a price for cached tokens
        ({"input": 10, "cached_input": 10}, 0.02, TURNS),
        ({"input": 10, "cached_input": 1}, 0.0, TURNS),  # a plan that does not limit cost
        ({"input": 10, "cached_input": 1}, 0.02, TURNS[:1]),
    ],
)
async def test_nothing_is_added_without_a_discount_a_price_or_earlier_turns(
    prices: dict[str, float], dual: float, turns: tuple[str, ...]
) -> None:
    assert await cost_of(priced(**prices), dual=dual, turns=turns) == 0


@pytest.mark.parametrize(("dual", "expert"), [(0.001, "coder"), (1.0, "painter")])
async def test_a_new_topic_leaves_unless_the_lost_cache_costs_more_than_it_gains(dual: float, expert: str) -> None:
    registry = priced(input=10, output=30, cached_input=1)
    messages: list[dict[str, Any]] = [{"role": "user", "content": TURNS[0]}]
    async with gateway_of(registry, assignment=plan_of(registry, dual)) as gateway:
        assert (await gateway.chat(messages=messages)).headers["x-coe-expert"] == "painter"
        messages += [{"role": "assistant", "content": "Done."}, {"role": "user", "content": TURNS[2]}]
        response = await gateway.post("/v1/chat/completions", orjson.dumps({"model": "auto", "messages": messages}))
    assert response.headers["x-coe-expert"] == expert


def test_the_switching_cost_is_added_to_the_margin() -> None:
    posterior, policy = (0.7, 0.2, 0.1), {"sticky_margin": 0.2}
    assert decided(chat_of("x"), *posterior, previous="painter", policy=policy).expert == "coder"
    stays = decided(chat_of("x"), *posterior, previous="painter", switching_cost=0.31, policy=policy)
    assert (stays.expert, stays.reason) == ("painter", "sticky")
