"""Computes the most that a request may use, which its key reserves: one call to an expert, or all calls of a recipe.

Use is linear in the tokens of the conversation and of one answer, so a worst case is a few sums, and reserving costs
the same for any recipe.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields

from coe.core import NO_RECIPE, Chat
from coe.experts.recipes.calls import sets_reasoning
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
    def of_recipe(cls, recipe: RecipeSpec, prices: Mapping[str, Prices], *, caps_apply: bool = False) -> WorstCase:
        """Return the worst case of all calls of a recipe.

        A later step of a recipe that writes also reads the answers of the step before, and a judge reads one answer. If
        caps apply, all steps but the last have them; the last one has none for free text.
        """
        total = cls(0.0, 0.0)
        for number, step in enumerate(recipe.steps):
            drafts = len(recipe.steps[number - 1]) if number and recipe.writes else 0
            instruction_tokens = (
                ENVELOPE_TOKENS + len(recipe.written_instruction) / CHARACTERS_PER_TOKEN if drafts else 0.0
            )
            caps = recipe.max_tokens if caps_apply and number + 1 < len(recipe.steps) else {}
            for member, one in ((member, prices[member]) for member in step):
                cap = caps.get(member, 0)
                answers = 0.0 if cap else 1.0
                call = cls(
                    1.0,
                    answers + drafts,
                    instruction_tokens + cap,
                    one.input,
                    answers * one.output + drafts * one.input,
                    instruction_tokens * one.input + cap * one.output,
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
class Bounds:
    """Upper bounds of a request's use: the worst case `whole`, and `capped`, with the caps of recipes."""

    whole: WorstCase = WorstCase()
    capped: WorstCase = WorstCase()

    @classmethod
    def of_expert(cls, prices: Prices) -> Bounds:
        """Return those of one call."""
        return cls(*(WorstCase.of_expert(prices),) * 2)

    @classmethod
    def of_recipe(cls, recipe: RecipeSpec, prices: Mapping[str, Prices]) -> Bounds:
        """Return those of all calls of a recipe."""
        return cls(WorstCase.of_recipe(recipe, prices), WorstCase.of_recipe(recipe, prices, caps_apply=True))

    @classmethod
    def largest(cls, alternatives: Collection[Bounds]) -> Bounds:
        """Return upper bounds of all alternatives."""
        return cls(
            WorstCase.largest([one.whole for one in alternatives]),
            WorstCase.largest([one.capped for one in alternatives]),
        )

    def amounts(self, input_tokens: float, output_tokens: float, *, caps_apply: bool) -> Amounts:
        """Return the use of one request with so many tokens of conversation and of an answer.

        An answer has no more tokens than either its limit or its cap, so both cases are bounds.
        """
        whole = self.whole.amounts(input_tokens, output_tokens)
        if not caps_apply:
            return whole
        capped = self.capped.amounts(input_tokens, output_tokens)
        return Amounts(1, min(whole.tokens, capped.tokens), min(whole.dollars, capped.dollars))


@dataclass(frozen=True, slots=True)
class Pricing:
    """Prices of experts by name, and the worst case of a request.

    `worst_of` has it by the name that a request pins: an expert, a recipe or an arm. `highest` is that of a routed
    request to single experts, `routed` that of one that routing may give to a recipe.
    """

    experts: Mapping[str, Prices] = field(default_factory=dict)
    worst_of: Mapping[str, Bounds] = field(default_factory=dict)
    highest: Bounds = Bounds()
    routed: Bounds = Bounds()

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
        worst = {name: Bounds.of_expert(prices) for name, prices in experts.items()}
        possible = [one for name, one in worst.items() if permitted is None or name in permitted]
        highest = Bounds.largest(possible or [Bounds()])
        routed = [name for name in routed if permitted is None or name in permitted]
        worst |= {name: Bounds.of_recipe(recipe, experts) for name, recipe in recipes.items()}
        return cls(experts, worst, highest, Bounds.largest([highest, *(worst[name] for name in routed)]))

    def amounts(self, chat: Chat, recipe: str, *, input_tokens: float, output_tokens: float) -> Amounts:
        """Return the most that a request uses, with so many tokens of conversation and of an answer.

        The first steps of streams have no caps, and no step of a request that sets its reasoning.
        """
        caps_apply = not chat.stream and not sets_reasoning(chat.fields)
        return self._bounds(chat, recipe).amounts(input_tokens, output_tokens, caps_apply=caps_apply)

    def _bounds(self, chat: Chat, recipe: str) -> Bounds:
        """Return those of the expert or recipe that a request pins, or the highest of all for a routed request."""
        model = recipe if chat.model == AUTO and recipe else chat.model
        if (found := self.worst_of.get(model)) is not None:
            return found
        return self.highest if recipe == NO_RECIPE or single_expert_reason(chat) else self.routed
