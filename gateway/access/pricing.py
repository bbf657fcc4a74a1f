"""Computes the most that a request may use, which its key reserves: one call to an expert, or all calls of a recipe.

Use is linear in the tokens of the conversation and of one answer, so a worst case is a few sums, and reserving costs
the same for any recipe.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields

from coe.core import NO_RECIPE, Chat
from coe.experts.recipes.judge import GRADE_TOKENS, PROMPT_TOKENS
from coe.experts.recipes.writing.request import ENVELOPE_TOKENS
from coe.registry import AUTO, Prices, RecipeSpec
from coe.routing.eligibility import single_expert_reason
from gateway.access.estimate import CHARACTERS_PER_TOKEN
from gateway.access.limits import Amounts


@dataclass(frozen=True, slots=True)
class WorstCase:
    """The most that a request may use: `conversation` times its input tokens, plus `answer` times the tokens of an
    answer, plus `fixed` tokens; the same of US dollars per million tokens."""

    conversation: float = 1.0
    answer: float = 1.0
    fixed: float = 0.0
    conversation_price: float = 0.0
    answer_price: float = 0.0
    fixed_price: float = 0.0

    @classmethod
    def of_expert(cls, prices: Prices) -> WorstCase:
        """Return that of one call."""
        return cls(conversation_price=prices.input, answer_price=prices.output)

    @classmethod
    def of_recipe(cls, recipe: RecipeSpec, prices: Mapping[str, Prices]) -> WorstCase:
        """Return the worst case of all calls of a recipe. A later step of a chain or fuse also reads the answers of the
        step before, and a judge reads one answer."""
        total = cls(0.0, 0.0)
        for number, step in enumerate(recipe.steps):
            drafts = len(recipe.steps[number - 1]) if number and recipe.writes else 0
            instruction_tokens = (
                ENVELOPE_TOKENS + len(recipe.written_instruction) / CHARACTERS_PER_TOKEN if drafts else 0.0
            )
            for one in (prices[member] for member in step):
                call = cls(
                    1.0,
                    1.0 + drafts,
                    instruction_tokens,
                    one.input,
                    one.output + drafts * one.input,
                    instruction_tokens * one.input,
                )
                total = total.plus(call)
        for one in (prices[name] for name in recipe.called[len(recipe.members) :]):
            graded = PROMPT_TOKENS * one.input + GRADE_TOKENS * one.output
            total = total.plus(cls(1.0, 1.0, PROMPT_TOKENS + GRADE_TOKENS, one.input, one.input, graded))
        return total

    def plus(self, other: WorstCase) -> WorstCase:
        """Return the sum of both."""
        return WorstCase(*(getattr(self, part) + getattr(other, part) for part in _PARTS))

    @classmethod
    def largest(cls, alternatives: Collection[WorstCase]) -> WorstCase:
        """Return an upper bound of all alternatives."""
        return cls(*(max(getattr(one, part) for one in alternatives) for part in _PARTS))

    def amounts(self, input_tokens: float, output_tokens: float) -> Amounts:
        """Return the use of one request with these numbers of tokens in its conversation and in its answer."""
        dollars = input_tokens * self.conversation_price + output_tokens * self.answer_price + self.fixed_price
        tokens = input_tokens * self.conversation + output_tokens * self.answer + self.fixed
        return Amounts(1, tokens, dollars / 1e6)


_PARTS = tuple(part.name for part in fields(WorstCase))


@dataclass(frozen=True, slots=True)
class Pricing:
    """Prices of experts by name, and the worst case of a request.

    `worst_of` has it by the name that a request pins: an expert, a recipe or an arm. `highest` is that of a routed
    request to single experts, `routed` that of one that routing may give to a recipe.
    """

    experts: Mapping[str, Prices] = field(default_factory=dict)
    worst_of: Mapping[str, WorstCase] = field(default_factory=dict)
    highest: WorstCase = WorstCase()
    routed: WorstCase = WorstCase()

    @classmethod
    def of(
        cls,
        experts: Mapping[str, Prices],
        recipes: Mapping[str, RecipeSpec],
        routed: Collection[str],
        permitted: Collection[str] | None = None,
    ) -> Pricing:
        """Return the pricing for `recipes` by recipe and arm. `routed` are the arms that routing may select;
        `permitted` the experts and arms that the key may use, None for all."""
        worst = {name: WorstCase.of_expert(prices) for name, prices in experts.items()}
        possible = [one for name, one in worst.items() if permitted is None or name in permitted]
        highest = WorstCase.largest(possible or [WorstCase()])
        routed = [name for name in routed if permitted is None or name in permitted]
        worst |= {name: WorstCase.of_recipe(recipe, experts) for name, recipe in recipes.items()}
        return cls(experts, worst, highest, WorstCase.largest([highest, *(worst[name] for name in routed)]))

    def worst_case(self, chat: Chat, recipe: str) -> WorstCase:
        """Return the worst case of the expert or recipe that a request pins, or the highest of all for a routed
        request."""
        model = recipe if chat.model == AUTO and recipe else chat.model
        if (found := self.worst_of.get(model)) is not None:
            return found
        return self.highest if recipe == NO_RECIPE or single_expert_reason(chat) else self.routed
