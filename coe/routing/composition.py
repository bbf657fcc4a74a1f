"""`Composition`: one router, one assignment and the experts, from a chat to the first chunk of the response.

It carries out the steps classify, assign, retrieve and call of a request. The selection itself is the pure function
`coe.routing.decision.decide`. A composition owns none of its parts, and is replaced as a whole on a reload.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.core import (
    GENERAL,
    Call,
    Chat,
    Decision,
    Expert,
    Health,
    Prediction,
    Reply,
    RequestOptions,
    Router,
)
from coe.planning import Assignment
from coe.planning.problem import relative_cost
from coe.registry import ArmSpec, ExpertSpec, Registry
from coe.retrieval.retrieval import Retrieval, RetrievalRequest, RetrievalResult
from coe.routing.attempts import Attempts, call_experts
from coe.routing.classifier import Classifier
from coe.routing.conversation import Affinity, Conversation
from coe.routing.decision import NO_PREVIOUS, Previous, decide, with_fallback
from coe.routing.request_text import RoutedText
from coe.routing.rules import Rules
from coe.usage import RecipeLog

NO_RETRIEVAL = RetrievalResult()
NO_CONVERSATION = Conversation()


@dataclass(frozen=True, slots=True)
class RoutedReply:
    """A reply whose first chunk has arrived, and the decision with the expert that sent it."""

    decision: Decision
    reply: Reply


class Composition:
    """Router, assignment and experts. Belongs to one event loop.

    `recipes` are the arms of the declared recipes by name.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        router: Router,
        assignment: Assignment,
        experts: Mapping[str, Expert],
        threads: Executor,
        confidence_threshold: float = 0.0,
        affinity: Affinity | None = None,
        retrieval: Retrieval | None = None,
        recipes: Mapping[str, Expert] | None = None,
    ) -> None:
        self.registry = registry
        self.router = router
        self.assignment = assignment
        self.assignment_digest = assignment.digest[:16]
        self.experts = experts
        self.recipes = recipes or {}
        self._arms: dict[str, Expert] = {**experts, **self.recipes}
        self._routed_recipes = [self.recipes[name] for name in assignment.experts if name in self.recipes]
        specs = [registry.arm(name) for name in assignment.experts]
        self._expert_columns = [registry.expert_names.index(first_expert(spec)) for spec in specs]
        declared = registry.policy.confidence_threshold
        self._confidence_threshold = confidence_threshold if declared is None else declared
        self._relative_cost = relative_cost(registry, assignment.experts)
        self.affinity = Affinity() if affinity is None else affinity
        self._retrieval = retrieval
        self.retrieves = retrieval is not None
        """True if documents are declared, so that step 5 may insert passages."""
        self._shares_devices = registry.residency is not None
        self.prices = {arm.name: arm.prices for arm in registry.arms}
        """The prices of experts and arms by name."""
        self.rules = Rules(registry, router.categories) if registry.rules else None
        """The rules of experts.yaml; None without any."""
        self.classifier = Classifier(
            router,
            assignment=assignment,
            specs=specs,
            confidence_threshold=self._confidence_threshold,
            encoder_timeout=registry.router.encoder_timeout,
            threads=threads,
            retrieves=self.retrieves,
            rules=self.rules,
        )

    @property
    def routed_arms(self) -> tuple[str, ...]:
        """The arms of recipes that routing may select for some category, or by a rule."""
        possible: list[bool] = np.isfinite(self.assignment.quality.max(axis=0)).tolist()
        planned = {name for name, is_possible in zip(self.assignment.experts, possible, strict=True) if is_possible}
        named = () if self.rules is None else self.rules.arms.values()
        return tuple(name for name in self.recipes if name in planned or name in named)

    async def warm(self) -> None:
        """Prepare the document store for the first request; without documents nothing is done."""
        if self._retrieval is not None:
            await self._retrieval.warm()

    async def find_previous(self, conversation: Conversation, routed: RoutedText) -> Previous:
        """Return the expert of the conversation's last answer, and how the request relates to that answer."""
        expert = (await self.affinity.find(conversation) or "") if conversation.earlier else ""
        return Previous(expert if expert in self._arms else "", routed.continues, routed.in_loop)

    def assign(
        self,
        chat: Chat,
        prediction: Prediction,
        options: RequestOptions,
        *,
        previous: Previous = NO_PREVIOUS,
    ) -> Decision:
        """Decide with exploration, if it is declared, except in a loop of tool calls."""
        explores = self.registry.policy.exploration.rate > 0 and not previous.in_loop
        uniform = random.random() if explores else None  # noqa: S311 (no secret depends on it)
        return self.decide(chat, prediction, options, previous=previous, uniform=uniform)

    def assign_general(self, chat: Chat, options: RequestOptions) -> Decision:
        """Decide on a request that passes through: as for a text that is certainly of the category `general`, unless a
        rule sets another one."""
        posterior = np.array([name == GENERAL for name in self.router.categories], dtype=np.float32)
        prediction = Prediction(posterior, "pass_through")
        if self.rules is not None:
            prediction = self.rules.apply(options.rules, prediction)
        return self.decide(chat, prediction, options)

    def decide(
        self,
        chat: Chat,
        prediction: Prediction,
        options: RequestOptions,
        *,
        previous: Previous = NO_PREVIOUS,
        uniform: float | None = None,
    ) -> Decision:
        """Call `coe.routing.decision.decide` with this composition's parts and the request's options. Same errors."""
        return decide(
            chat,
            prediction,
            registry=self.registry,
            assignment=self.assignment,
            confidence_threshold=self._confidence_threshold,
            previous=previous,
            extra_price=self._extra_price(prediction, options) if self.retrieves or options.cost_weight else None,
            health_by_expert=self._health(),
            uniform=uniform,
            recipe=options.recipe,
            rule=options.rule,
            named=self.rules.arms.get(prediction.rule, "") if self.rules is not None else "",
        )

    def _health(self) -> dict[str, Health]:
        """Return the health of what routing may select, if it is down or overloaded: usually empty."""
        impaired = dict[str, Health]()
        for name, expert in self.experts.items():
            health = expert.health
            if not health.up or health.load >= 1:
                impaired[name] = health
        if impaired:  # a recipe is so only if one of its experts is
            impaired |= {arm.name: arm.health for arm in self._routed_recipes}
        return impaired

    def _extra_price(self, prediction: Prediction, options: RequestOptions) -> NDArray[np.float64] | None:
        """Return each arm's cost at the request's cost_weight, minus the gain that passages are expected to add.

        So a small expert with passages can be selected instead of a large one without.
        """
        gain = self._retrieval.net_gain(prediction, options.retrieval) if self._retrieval else None
        if gain is not None and len(self._expert_columns) > len(gain):
            gain = gain[self._expert_columns]
        if not options.cost_weight:
            return None if gain is None else -gain
        cost = options.cost_weight * self._relative_cost
        return cost if gain is None else cost - gain

    async def retrieve(
        self,
        chat: Chat,
        decision: Decision,
        options: RequestOptions,
        *,
        routed: RoutedText,
        prediction: Prediction,
        tenant: str | None,
        previous: Previous = NO_PREVIOUS,
    ) -> tuple[Chat, Decision, RetrievalResult]:
        """Insert passages into the chat if the gate opens. Never fails.

        If the decision counted on passages and none are inserted, the request is decided again without retrieval.
        """
        retrieval = self._retrieval
        assert retrieval is not None, "step 5 runs only if `retrieves`"
        specs = [self.registry.arm(name) for name in decision.candidates[: self.registry.policy.max_attempts]]
        context = min(spec.context_length for spec in specs)
        expert = self.registry.expert_names.index(first_expert(self.registry.arm(decision.expert)))
        question = RetrievalRequest(chat, routed.text, prediction, expert, context, tenant, options.retrieval)
        counted_on = retrieval.net_gain(prediction, options.retrieval) is not None
        chat_with_passages, result = await retrieval.retrieve(question)
        if counted_on and result.status != "used" and decision.reason in ("routed", "spilled", "fallback"):
            options = replace(options, retrieval="off")
            decision = self.assign(chat, prediction, options, previous=previous)
        return chat_with_passages, decision, result

    async def call(
        self,
        chat: Chat,
        decision: Decision,
        options: RequestOptions,
        *,
        deadline: float,
        attempts: Attempts,
        prediction: Prediction | None = None,
        conversation: Conversation = NO_CONVERSATION,
        previous: Previous = NO_PREVIOUS,
    ) -> RoutedReply:
        """Call the candidates in order until one sends a first chunk, before `deadline` (event loop clock).

        In a loop of tool calls the expert is not replaced by its stand-in: another one is called only if it fails.
        Counts into `attempts`. The `prediction` helps recipes to weigh answers.

        Raises an ExpertError or InvalidRequest if none answers.
        """
        policy = self.registry.policy
        if self.recipes and not self.recipes.keys().isdisjoint(decision.candidates):
            attempts.recipe_log = RecipeLog()
        order = decision.candidates
        stays = previous.in_loop and previous.expert == decision.expert
        call = Call(
            chat.fields,
            chat.stream,
            policy.first_token_timeout if chat.stream else policy.response_timeout,
            policy.stream_idle_timeout,
            api=chat.api,
            headers=options.forwarded_headers,
            conversation=conversation.prefix,
            posterior=prediction.probabilities if prediction else None,
            deadline=deadline,
            recipe_log=attempts.recipe_log,
            dropped=attempts.dropped,
            sent=attempts.sent,
            memory=attempts.memory,
        )
        if self._shares_devices:
            call = self._waking(call, order[1] if len(order) > 1 and not stays else "")
        expert, reply = await call_experts(
            call,
            [self._arms[name] for name in order],
            max_attempts=1 if options.purpose == "score" else policy.max_attempts,  # its command retries, and counts
            deadline=deadline,
            attempts=attempts,
        )
        if expert != decision.expert:
            decision = with_fallback(decision, expert, cause=attempts.causes[decision.expert])
        self.affinity.put(conversation, expert)
        if "tools" in chat.needs:
            reply = self.affinity.noting_calls(reply, chat.api, conversation, expert)
        return RoutedReply(decision, reply)

    def _waking(self, call: Call, stand_in: str) -> Call:
        """Return the call of an expert that may be asleep; the arm `stand_in` may answer for it, if it is not empty."""
        residency = self.registry.residency
        assert residency is not None
        return replace(
            call,
            stand_in=stand_in,
            wake_deadline=min(call.deadline, asyncio.get_running_loop().time() + residency.wait_timeout),
        )


def first_expert(arm: ExpertSpec | ArmSpec) -> str:
    """Return the name of the declared expert behind an arm; for a recipe, of its first member."""
    return arm.members[0].name if isinstance(arm, ArmSpec) else arm.name
