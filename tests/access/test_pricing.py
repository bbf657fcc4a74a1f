"""Amounts that an API key reserves for a recipe and for a routed request."""

from coe.core import Chat
from coe.registry import Prices, RecipeSpec
from gateway.access.estimate import Pricing
from gateway.access.limits import Amounts

PRICES = {"small": Prices(input=1, output=2), "large": Prices(input=10, output=20)}
CAREFUL = RecipeSpec(name="careful", cascade=(("small",), ("large",)))
PRICING = Pricing.of(PRICES, {"careful": CAREFUL}, ["careful"])
GIVEN, WRITTEN = 100, 500


def reserved(model: str, recipe: str = "") -> Amounts:
    chat = Chat(model, (), False, frozenset(), 0, {})
    return PRICING.amounts(chat, recipe, input_tokens=GIVEN, output_tokens=WRITTEN)


def test_a_routed_request_reserves_the_largest_of_all_that_may_answer_it() -> None:
    both = Amounts(1, 2 * (GIVEN + WRITTEN), (GIVEN * 11 + WRITTEN * 22) / 1e6)
    alone = Amounts(1, GIVEN + WRITTEN, (GIVEN * 10 + WRITTEN * 20) / 1e6)
    assert reserved("careful") == reserved("auto") == both
    assert reserved("auto", "off") == reserved("large") == alone
