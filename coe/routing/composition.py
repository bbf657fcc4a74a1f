"""`Composition`: one router, one assignment and the experts, from a chat to the first chunk of the response.

It carries out the steps classify, assign, retrieve and call of a request. The selection itself is the pure function
`coe.routing.decision.decide`. A composition owns none of its parts, and is replaced as a whole on a reload.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coe.core import (
    FAST_UNCERTAIN,
    GENERAL,
    UNDETERMINED,
    Call,
    Chat,
    CountsPending,
    Decision,
    Expert,
    ExpertRule,
    Health,
    PendingCall,
    Prediction,
    Reply,
    RequestOptions,
    Router,
)
from coe.experts.variants import build_variants
from coe.frozen import fast_init
from coe.mapping import Assignment, information_value, routing_gain
from coe.mapping.problem import relative_cost
from coe.registry import AUTO, ArmSpec, ExpertSpec, Registry
from coe.retrieval.retrieval import Retrieval, RetrievalRequest, RetrievalResult
from coe.routing.attempts import Attempts, call_experts
from coe.routing.classification import SHORT_CIRCUIT, EncoderPasses, Overlays
from coe.routing.conversation import Affinity, Conversation, newest_turn
from coe.routing.decision import NO_PREVIOUS, Previous, decide, with_fallback
from coe.routing.eligibility import exclusion, ineligibility
from coe.routing.phrases import opens_topic
from coe.routing.request_text import RoutedText, read_request
from coe.routing.stuck import is_stuck
from coe.usage import RecipeLog

MIN_INFORMATION_VALUE = 0.01
MIN_SHARE_OF_ROUTING_GAIN = 0.5
"""An encoder pass is worth its time if knowing the category would gain enough expected quality: more than
MIN_INFORMATION_VALUE, and more than this share of the routing gain. Declared qualities have an
arbitrary scale, so the bound is also relative to the routing gain. Both were chosen on held-out training prompts
(docs/experiments/encoder-escalation.md)."""
ESCALATED_MARK = "!"
"""End of an affinity entry of a session that was escalated."""
CHARACTERS_PER_TOKEN = 4
"""Estimate for the tokens of a chat."""
NO_RETRIEVAL = RetrievalResult()
NO_CONVERSATION = Conversation()


@fast_init
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
        overlays: Overlays | None = None,
        retrieval: Retrieval | None = None,
        recipes: Mapping[str, Expert] | None = None,
    ) -> None:
        self.registry = registry
        self.router = router
        self.assignment = assignment
        self.assignment_digest = assignment.digest[:16]
        self.experts = experts
        self.recipes = recipes or {}
        self.variants = build_variants(registry, experts)
        self._arms: dict[str, Expert] = {**experts, **self.variants, **self.recipes}
        self._routed_recipes = [self.recipes[name] for name in assignment.experts if name in self.recipes]
        self._specs = [registry.arm(name) for name in assignment.experts]
        self._expert_columns = [registry.expert_names.index(first_expert(spec)) for spec in self._specs]
        declared = registry.policy.confidence_threshold
        self._confidence_threshold = confidence_threshold if declared is None else declared
        self._relative_cost = relative_cost(registry, assignment.experts)
        self.affinity = Affinity() if affinity is None else affinity
        self._encoder_passes = EncoderPasses(router, threads=threads, timeout=registry.router.encoder_timeout)
        self._overlays = overlays or Overlays()
        self._retrieval = retrieval
        self.retrieves = retrieval is not None
        """True if documents are declared, so that step 5 may insert passages."""
        self._counting_experts = _counting_by_arm(registry, experts)
        self._shares_devices = registry.residency is not None
        self.prices = {arm.name: arm.prices for arm in registry.arms}
        """The prices of experts and arms by name."""
        self._highest_price = max(spec.prices.input + spec.prices.output for spec in registry.single_arms) or 1.0
        self._general = router.categories.index(GENERAL)

    @property
    def routed_arms(self) -> tuple[str, ...]:
        """The arms of recipes that routing may select for some category."""
        possible: list[bool] = np.isfinite(self.assignment.quality.max(axis=0)).tolist()
        return tuple(
            name
            for name, is_possible in zip(self.assignment.experts, possible, strict=True)
            if is_possible and name in self.recipes
        )

    async def warm(self) -> None:
        """Prepare the document store for the first request; without documents nothing is done."""
        if self._retrieval is not None:
            await self._retrieval.warm()

    async def classify(
        self, chat: Chat, tenant: str | None, rule: ExpertRule | None = None
    ) -> tuple[RoutedText, Prediction]:
        """Return the routed text and its posterior, with the tenant's overlay if there is one.

        The newest request of a conversation is routed alone if it opens a topic, which the fast heads help to decide.
        """
        routed, fast = read_request(chat), None
        if routed.newest and chat.model == AUTO:
            alone = self._predict_fast(routed.newest, tenant)
            opens = opens_topic(routed.newest, float(alone.probabilities[self._general]))
            routed, fast = routed.of_topic(opens=opens), alone if opens else None
        fast = fast or self._predict_fast(routed.text, tenant)
        if fast.stage != FAST_UNCERTAIN:
            return routed, fast
        return routed, await self._refined(fast, routed.text, chat, tenant, rule)

    async def classify_text(
        self, text: str, chat: Chat, tenant: str | None, *, rule: ExpertRule | None = None
    ) -> Prediction:
        """Classify a text that `read_request` made from the chat."""
        fast = self._predict_fast(text, tenant)
        return fast if fast.stage != FAST_UNCERTAIN else await self._refined(fast, text, chat, tenant, rule)

    def _predict_fast(self, text: str, tenant: str | None) -> Prediction:
        """Return the fast prediction with the tenant's overlay, of stage FAST_UNCERTAIN if it is uncertain.

        Runs on the event loop, in about 0.1 ms.
        """
        fast = self.router.predict_fast(text, force=True)
        assert fast is not None
        return self.apply_overlay(fast, tenant)

    async def _refined(
        self, fast: Prediction, text: str, chat: Chat, tenant: str | None, rule: ExpertRule | None
    ) -> Prediction:
        """Use the encoder if it might change the choice between the experts that the `rule` permits."""
        if not self._needs_encoder(chat, fast, rule):
            return replace(fast, stage=SHORT_CIRCUIT)
        refined = await self._encoder_passes.predict(text, foreign=fast.language == UNDETERMINED)
        return fast if refined is None else self.apply_overlay(refined, tenant)

    def apply_overlay(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """Apply the tenant's overlay to a posterior of the router."""
        return self._overlays.apply(prediction, tenant) if self._overlays.by_tenant else prediction

    def _needs_encoder(self, chat: Chat, prediction: Prediction, rule: ExpertRule | None) -> bool:
        """True if a better posterior may select an expert that is better by enough; always True with documents.

        Texts that no encoder helps do not reach this point. Without the extra `multilingual`, the router counts a text
        mostly in another script as sure.
        """
        if self._retrieval is not None:
            return True
        if chat.model != AUTO:
            return False
        eligible = [index for index, spec in enumerate(self._specs) if not ineligibility(chat, spec)]
        if rule is not None:
            eligible = [index for index in eligible if not exclusion(rule, self._specs[index])]
        if len(eligible) < 2:
            return False
        if prediction.language == UNDETERMINED:  # the fast heads know English
            return True
        uncertain = prediction.confidence < self._confidence_threshold
        value = information_value(self.assignment, prediction.probabilities, eligible, uncertain=uncertain)
        share = MIN_SHARE_OF_ROUTING_GAIN * routing_gain(self.assignment, eligible)
        return value > max(MIN_INFORMATION_VALUE, share)

    async def find_previous(
        self, chat: Chat, conversation: Conversation, routed: RoutedText, options: RequestOptions
    ) -> Previous:
        """Return the expert of the conversation's last answer, and how the request relates to that answer."""
        found = (await self.affinity.find(conversation) or "") if conversation.earlier else ""
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
        declared = self.registry.policy.escalate_stuck_to
        following = declared[declared.index(expert) + 1 :] if expert in declared else declared
        if rule is not None:
            following = tuple(name for name in following if not exclusion(rule, self.registry.arm(name)))
        return following[0] if following and chat.model == AUTO and is_stuck(chat) else ""

    def _switching_cost(self, chat: Chat, expert: str, cost_weight: float) -> float:
        """Return the price of the expert's prefix cache in expected quality, as the plan and the cost weight value it.

        All of the chat before its newest turn counts as cached, if the expert has a price for cached tokens. In the
        plan, a dollar has the price of the row `mean_cost`. The cost weight is the quality of the most expensive
        expert's price, so the discount on this share of the request counts in proportion.
        """
        prices, dual = self.registry.arm(expert).prices, self.assignment.duals.get("mean_cost", 0.0)
        discount = prices.input - prices.cached
        if discount <= 0 or not (dual or cost_weight) or not chat.characters:
            return 0.0
        characters = sum(len(message.text) for message in chat.messages[: newest_turn(chat.messages)[0]])
        per_thousand_requests = characters / CHARACTERS_PER_TOKEN * discount / 1000
        relative = characters / chat.characters * discount / self._highest_price
        return dual * per_thousand_requests + cost_weight * relative

    def assign(
        self,
        chat: Chat,
        prediction: Prediction,
        options: RequestOptions,
        *,
        previous: Previous = NO_PREVIOUS,
        attempts: Attempts | None = None,
    ) -> Decision:
        """Decide with exploration, if it is declared, except in a loop of tool calls.

        With its `attempts`, the request is part of the expert's load from here on, so that the next decision sees it.
        The caller ends this with `Attempts.end_pending` if the request ends before its call.
        """
        counted = attempts if self._counting_experts else None
        if counted is not None:
            counted.end_pending()  # of an earlier decision: the request must not find its expert full of itself
        explores = self.registry.policy.exploration.rate > 0 and not previous.in_loop
        uniform = random.random() if explores else None  # noqa: S311 (no secret depends on it)
        decision = self.decide(chat, prediction, options, previous=previous, uniform=uniform)
        if counted is not None:
            counted.pending = PendingCall(self._counting_experts[decision.expert])
        return decision

    def assign_general(self, chat: Chat, options: RequestOptions) -> Decision:
        """Decide on a request that passes through: as for a text that is certainly of the category `general`."""
        posterior = np.array([name == GENERAL for name in self.router.categories], dtype=np.float32)
        return self.decide(chat, Prediction(posterior, "pass_through"), options)

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
        )

    def _health(self) -> dict[str, Health]:
        """Return the health of what routing may select, if it is down or overloaded: usually empty."""
        impaired = dict[str, Health]()
        for name, expert in self.experts.items():
            health = expert.health
            if not health.up or health.load >= 1:
                impaired[name] = health
        if impaired:  # variants and recipes are so only if one of their experts is
            for variant in self.registry.variants:
                if variant.variant_of in impaired:
                    impaired[variant.name] = impaired[variant.variant_of]
            impaired |= {arm.name: arm.health for arm in self._routed_recipes}
        return impaired

    def _extra_price(self, prediction: Prediction, options: RequestOptions) -> NDArray[np.float64] | None:
        """Return each arm's cost at the request's cost_weight, minus the gain that passages are expected to add.

        A small expert with passages can so be selected instead of a large one without.
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
        attempts: Attempts | None = None,
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
        found = result.status in ("used", "withheld")
        if counted_on and not found and decision.reason in ("routed", "spilled", "fallback"):
            options = replace(options, retrieval="off")
            decision = self.assign(chat, prediction, options, previous=previous, attempts=attempts)
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

        In a loop of tool calls the expert is neither hedged nor replaced by its stand-in: another one is called only
        if it fails. Counts into `attempts`. The `prediction` helps recipes to weigh answers.

        Raises an ExpertError or InvalidRequest if none answers.
        """
        policy = self.registry.policy
        if self.recipes and not self.recipes.keys().isdisjoint(decision.candidates):
            attempts.recipe_log = RecipeLog()
        order = decision.candidates
        if self.variants:
            order = one_arm_of_each_expert(order, self.registry)
        escalated = previous.escalated or decision.reason == "escalated"
        stays = previous.in_loop and previous.expert == decision.expert
        call = Call(
            chat.fields,
            chat.stream,
            policy.first_token_timeout if chat.stream else policy.response_timeout,
            policy.stream_idle_timeout,
            api=chat.api,
            headers=options.forwarded_headers,
            conversation=conversation.prefix,
            category=decision.category,
            tenant=options.tenant or "",
            posterior=prediction.probabilities if prediction else None,
            deadline=deadline,
            recipe_log=attempts.recipe_log,
            dropped=attempts.dropped,
            pending=attempts.pending,
        )
        if self._shares_devices:
            call = self._waking(call, order[1] if len(order) > 1 and not stays else "")
        expert, reply = await call_experts(
            call,
            [self._arms[name] for name in order],
            max_attempts=1 if options.purpose == "score" else policy.max_attempts,  # its command retries, and counts
            deadline=deadline,
            attempts=attempts,
            hedge=policy.hedge and not stays,
        )
        if expert != decision.expert:
            decision = with_fallback(decision, expert, cause=attempts.causes.get(decision.expert, "hedged"))
        answered_by = f"{expert}{ESCALATED_MARK}" if escalated else expert
        self.affinity.put(conversation, answered_by)
        if "tools" in chat.needs:
            reply = self.affinity.noting_calls(reply, chat.api, conversation, answered_by)
        return RoutedReply(decision, reply)

    def _waking(self, call: Call, stand_in: str) -> Call:
        """Return the call of an expert that may be asleep; the arm `stand_in` may answer for it, if it is not empty."""
        residency = self.registry.residency
        assert residency is not None
        return replace(
            call,
            stand_in=self.registry.arm(stand_in).expert_name if stand_in else "",
            wake_deadline=min(call.deadline, asyncio.get_running_loop().time() + residency.wait_timeout),
        )


def opening_experts(arm: ExpertSpec | ArmSpec) -> list[str]:
    """Return the names of the declared experts that an arm calls first: several if a recipe begins with several."""
    first = arm.members[: len(arm.steps[0])] if isinstance(arm, ArmSpec) else (arm,)
    return [spec.expert_name for spec in first]


def first_expert(arm: ExpertSpec | ArmSpec) -> str:
    """Return the name of the declared expert behind an arm; of a recipe that of its first member."""
    return opening_experts(arm)[0]


def _counting_by_arm(registry: Registry, experts: Mapping[str, Expert]) -> dict[str, list[CountsPending]]:
    """Return the experts that each arm calls first and that count pending calls; empty if no expert has a limit."""
    if all(spec.concurrent_requests is None for spec in registry.experts):
        return {}
    counting = {name: expert for name, expert in experts.items() if isinstance(expert, CountsPending)}
    return {arm.name: [counting[name] for name in opening_experts(arm) if name in counting] for arm in registry.arms}


def one_arm_of_each_expert(order: Sequence[str], registry: Registry) -> tuple[str, ...]:
    """Drop further arms of the same expert, which would call the same server again after it failed."""
    first: dict[str, str] = {}
    for name in order:
        first.setdefault(registry.arm(name).expert_name, name)
    return tuple(first.values())
