"""The expert of a conversation's last answer, and what its next request loses with another expert."""

from __future__ import annotations

from collections.abc import Container

from coe.core import Chat, ExpertRule, RequestOptions
from coe.mapping import Assignment
from coe.registry import AUTO, Registry
from coe.routing.conversation import Affinity, Conversation, newest_turn
from coe.routing.decision import Previous
from coe.routing.eligibility import exclusion
from coe.routing.request_text import RoutedText
from coe.routing.stuck import is_stuck

ESCALATED_MARK = "!"
"""End of an affinity entry of a session that was escalated."""
CHARACTERS_PER_TOKEN = 4
"""Estimate for the tokens of a chat."""


class Continuity:
    """Finds the previous expert of a conversation among the `arms`, the names that can be called."""

    def __init__(self, registry: Registry, *, assignment: Assignment, affinity: Affinity, arms: Container[str]) -> None:
        self._registry = registry
        self._assignment = assignment
        self._affinity = affinity
        self._arms = arms
        self._highest_price = max(spec.prices.input + spec.prices.output for spec in registry.experts) or 1.0

    async def find(
        self, chat: Chat, conversation: Conversation, routed: RoutedText, options: RequestOptions
    ) -> Previous:
        """Return the expert of the conversation's last answer, and how the request relates to that answer."""
        found = (await self._affinity.find(conversation) or "") if conversation.earlier else ""
        if not found:
            return Previous("", routed.continues, routed.in_loop)
        expert, escalated = found.removesuffix(ESCALATED_MARK), found.endswith(ESCALATED_MARK)
        if expert not in self._arms:
            return Previous("", routed.continues, routed.in_loop)
        cost = 0.0 if routed.continues else self._switching_cost(chat, expert, options.cost_weight)
        escalate_to = "" if escalated or not routed.in_loop else self._escalation(chat, expert, options.rule)
        return Previous(expert, routed.continues, routed.in_loop, cost, escalate_to, escalated)

    def _escalation(self, chat: Chat, expert: str, rule: ExpertRule | None) -> str:
        """Return the expert that continues the session if it is stuck with this one: the next declared one that the
        rule permits; empty if there is none."""
        declared = self._registry.policy.escalate_stuck_to
        following = declared[declared.index(expert) + 1 :] if expert in declared else declared
        if rule is not None:
            following = tuple(name for name in following if not exclusion(rule, self._registry.arm(name)))
        return following[0] if following and chat.model == AUTO and is_stuck(chat) else ""

    def _switching_cost(self, chat: Chat, expert: str, cost_weight: float) -> float:
        """Return the price of the expert's prefix cache in expected quality, as the plan and the cost weight value it.

        All of the chat before its newest turn counts as cached, if the expert has a price for cached tokens. The
        plan values a dollar at the price of its row `mean_cost`. The cost weight is the value of the most expensive
        expert's price, so the discount on the cached share of the request counts in proportion.
        """
        prices, dual = self._registry.arm(expert).prices, self._assignment.duals.get("mean_cost", 0.0)
        discount = prices.input - prices.cached
        if discount <= 0 or not (dual or cost_weight) or not chat.characters:
            return 0.0
        characters = sum(len(message.text) for message in chat.messages[: newest_turn(chat.messages)[0]])
        per_thousand_requests = characters / CHARACTERS_PER_TOKEN * discount / 1000
        relative = characters / chat.characters * discount / self._highest_price
        return dual * per_thousand_requests + cost_weight * relative
