"""Amounts that an API key reserves for a recipe with caps on its members' answers."""

from typing import Any

import pytest

from coe.core import Chat
from coe.registry import Prices, RecipeSpec
from gateway.access.access import access_of
from gateway.access.estimate import Pricing
from gateway.access.limits import Amounts, Limiter
from tests.fakes import registry_of

PRICES = {"small": Prices(input=1, output=2), "large": Prices(input=10, output=20)}
CAREFUL = RecipeSpec(name="careful", cascade=(("small",), ("large",)), max_tokens={"small": 40, "large": 60})
PRICING = Pricing.of(PRICES, {"careful": CAREFUL}, ["careful"])
GIVEN = 100


def chat_of(model: str = "careful", *, stream: bool = False, **fields: Any) -> Chat:
    return Chat(model, (), stream, frozenset(), 0, fields)


def reserved(chat: Chat, written: int) -> Amounts:
    return PRICING.amounts(chat, "", input_tokens=GIVEN, output_tokens=written)


def expected(small: int, large: int) -> Amounts:
    return Amounts(1, 2 * GIVEN + small + large, (GIVEN * 11 + small * 2 + large * 20) / 1e6)


def test_early_steps_reserve_their_caps_and_the_last_one_which_has_none_for_free_text_the_whole_answer() -> None:
    assert reserved(chat_of(), 500) == expected(40, 500)
    assert reserved(chat_of(), 30) == expected(30, 30)


@pytest.mark.parametrize("chat", [chat_of(stream=True), chat_of(reasoning_effort="high")])
def test_streams_and_requests_that_set_their_reasoning_reserve_whole_answers(chat: Chat) -> None:
    assert reserved(chat, 500) == expected(500, 500)


def test_a_routed_request_reserves_the_largest_of_all_that_may_answer_it() -> None:
    assert reserved(chat_of("auto"), 500) == expected(40, 500)
    alone = PRICING.amounts(chat_of("auto"), "off", input_tokens=GIVEN, output_tokens=500)
    assert alone == Amounts(1, GIVEN + 500, (GIVEN * 10 + 500 * 20) / 1e6)


@pytest.mark.parametrize(
    ("parameters", "reserves"),
    [({}, 40), ({"thinking": {"type": "enabled", "budget_tokens": 99}}, 500)],
)
def test_a_key_reserves_the_caps_that_its_calls_have(parameters: dict[str, Any], reserves: int) -> None:
    member = {"model": "m", "runtime": "external", "base_url": "http://h/v1"}
    experts = [{"name": "small", **member, "parameters": parameters}, {"name": "large", **member}]
    recipe = {"name": "careful", "cascade": ["small", "large"], "max_tokens": {"small": 40}}
    declared = registry_of(experts=experts, assignment={"general": "large"}, recipes=[recipe])
    pricing = access_of(declared, Limiter())._pricing
    amounts = pricing.amounts(chat_of("careful"), "", input_tokens=GIVEN, output_tokens=500)
    assert amounts.tokens == 2 * GIVEN + reserves + 500
