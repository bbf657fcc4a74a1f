"""`Composition`: one router, one assignment and the experts, from a chat to the first chunk of the response.

It carries out the steps assign, retrieve and call of a `RoutedRequest`, which holds what is known of a request. The
selection itself is the pure function `coe.routing.decision.decide`. A composition owns none of its parts, and is
replaced as a whole on a reload.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coe.core import (
    GENERAL,
    PASS_THROUGH_APIS,
    Call,
    Chat,
    Decision,
    Expert,
    Prediction,
    Reply,
    RequestOptions,
    Router,
)
from coe.planning.assignment import Assignment
from coe.planning.problem import relative_cost
from coe.registry import ArmSpec, ExpertSpec, Registry
from coe.retrieval.retrieval import Retrieval, RetrievalRequest, RetrievalResult
from coe.routing.attempts import Attempts, call_experts
from coe.routing.classifier import Classifier
from coe.routing.conversation import Affinity, Conversation, read_conversation
from coe.routing.decision import NO_PREVIOUS, Previous, decide, with_fallback
from coe.routing.request_text import NO_TEXT, RoutedText
from coe.routing.rules import Rules
from coe.usage import RecipeLog

NO_RETRIEVAL = RetrievalResult()
NO_CONVERSATION = Conversation()
NO_CHAT = Chat("", (), False, frozenset(), 0, {})
NO_OPTIONS = RequestOptions()


@dataclass(slots=True, eq=False)
class RoutedRequest:
    """All that is known of one request on its way to an expert. Each step adds its results.

    `chat` and `options` are those of the client, `routed` is the text that was classified. `previous` is the expert of
    the conversation's last answer. `decision` names the expert that answers once one does.
    """

    chat: Chat = NO_CHAT
    options: RequestOptions = NO_OPTIONS
    routed: RoutedText = NO_TEXT
    prediction: Prediction | None = None
    conversation: Conversation = NO_CONVERSATION
    previous: Previous = NO_PREVIOUS
    decision: Decision | None = None
    retrieval_result: RetrievalResult = NO_RETRIEVAL
    attempts: Attempts = field(default_factory=Attempts)
    taps: tuple[Callable[[bytes], None], ...] = ()
    """Called with each chunk of the answer."""


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
        specs = [registry.arm(name) for name in assignment.experts]
        self._expert_columns = [registry.expert_names.index(first_expert(spec)) for spec in specs]
        declared = registry.policy.confidence_threshold
        self._confidence_threshold = confidence_threshold if declared is None else declared
        self._relative_cost = relative_cost(registry, assignment.experts)
        self.affinity = Affinity() if affinity is None else affinity
        self._retrieval = retrieval
        self.retrieves = retrieval is not None
        """True if documents are declared, so that step 5 may insert passages."""
        self.prices = {arm.name: arm.prices for arm in registry.arms}
        """The prices of experts and arms by name."""
        self.rules = Rules(registry, router.categories) if registry.rules else None
        """The rules of experts.yaml; None without any."""
        posterior = np.array([name == GENERAL for name in router.categories], dtype=np.float32)
        self._general = Prediction(posterior, "pass_through")
        """The prediction of a request that passes through, unclassified."""
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

    async def assign(self, request: RoutedRequest) -> None:
        """Step 4: decide on the expert. A request that passes through is one of the category `general`, unless a rule
        sets another one. Raises what `decide` does."""
        chat, options = request.chat, request.options
        if chat.api in PASS_THROUGH_APIS:
            prediction = self._general if self.rules is None else self.rules.apply(options.rules, self._general)
            request.decision = self.decide(chat, prediction, options)
            return
        routed = request.routed
        request.conversation = conversation = read_conversation(chat, options, routed.requests)
        expert = (await self.affinity.find(conversation) or "") if conversation.earlier else ""
        request.previous = Previous(expert if expert in self._arms else "", routed.continues, routed.in_loop)
        self._explore(request, options)

    def _explore(self, request: RoutedRequest, options: RequestOptions) -> None:
        """Decide with exploration, if it is declared, except in a loop of tool calls."""
        assert request.prediction is not None
        previous = request.previous
        explores = self.registry.policy.exploration.rate > 0 and not previous.in_loop
        uniform = random.random() if explores else None  # noqa: S311 (no secret depends on it)
        request.decision = self.decide(request.chat, request.prediction, options, previous=previous, uniform=uniform)

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
            health_by_expert={name: arm.health for name, arm in self._arms.items()},
            uniform=uniform,
            recipe=options.recipe,
            rule=options.rule,
            named=self.rules.arms.get(prediction.rule, "") if self.rules is not None else "",
        )

    def _extra_price(self, prediction: Prediction, options: RequestOptions) -> NDArray[np.float64]:
        """Return each arm's cost at the request's cost_weight, minus the gain that passages are expected to add.

        So a small expert with passages can be selected instead of a large one without.
        """
        gain = self._retrieval.net_gain(prediction, options.retrieval) if self._retrieval else None
        if gain is not None and len(self._expert_columns) > len(gain):
            gain = gain[self._expert_columns]
        cost = options.cost_weight * self._relative_cost
        return cost if gain is None else cost - gain

    async def retrieve(self, request: RoutedRequest, *, tenant: str | None) -> Chat:
        """Step 5: return the chat, with passages if the gate opens. Never fails.

        If the decision counted on passages and none are inserted, the request is decided again without retrieval.
        """
        retrieval, options = self._retrieval, request.options
        decision, prediction = request.decision, request.prediction
        assert retrieval is not None, "step 5 runs only if `retrieves`"
        assert decision is not None and prediction is not None  # noqa: PT018
        called = decision.candidates[: self.registry.policy.max_attempts]
        context = min(self.registry.arm(name).context_length for name in called)
        expert = self.registry.expert_names.index(first_expert(self.registry.arm(decision.expert)))
        question = RetrievalRequest(
            request.chat, request.routed.text, prediction, expert, context, tenant, options.retrieval
        )
        counted_on = retrieval.net_gain(prediction, options.retrieval) is not None
        chat_with_passages, request.retrieval_result = await retrieval.retrieve(question)
        found = request.retrieval_result.status == "used"
        if counted_on and not found and decision.reason in ("routed", "spilled", "fallback"):
            self._explore(request, replace(options, retrieval="off"))
        return chat_with_passages

    async def call(self, request: RoutedRequest, chat: Chat, *, deadline: float) -> Reply:
        """Step 6: call the candidates in order until one sends a first chunk, before `deadline` (event loop clock).
        `chat` is what they are sent: that of the request, with its passages.

        In a loop of tool calls the expert is not replaced by its stand-in: another one is called only if it fails.
        The decision then names the expert that answers. Recipes weigh answers by the prediction.

        Raises an ExpertError or InvalidRequest if none answers.
        """
        policy, attempts, options, decision = self.registry.policy, request.attempts, request.options, request.decision
        assert decision is not None
        order, previous = decision.candidates, request.previous
        if self.recipes and not self.recipes.keys().isdisjoint(order):
            attempts.recipe_log = RecipeLog()
        stand_in, wake_deadline = "", 0.0
        if (residency := self.registry.residency) is not None:  # the expert may be asleep, and its stand-in answer
            stays = previous.in_loop and previous.expert == decision.expert
            stand_in = order[1] if len(order) > 1 and not stays else ""
            wake_deadline = min(deadline, asyncio.get_running_loop().time() + residency.wait_timeout)
        call = Call(
            chat.fields,
            chat.stream,
            policy.first_token_timeout if chat.stream else policy.response_timeout,
            policy.stream_idle_timeout,
            api=chat.api,
            headers=options.forwarded_headers,
            conversation=request.conversation.prefix,
            stand_in=stand_in,
            wake_deadline=wake_deadline,
            posterior=request.prediction.probabilities if request.prediction else None,
            deadline=deadline,
            recipe_log=attempts.recipe_log,
            dropped=attempts.dropped,
            sent=attempts.sent,
            memory=attempts.memory,
        )
        expert, reply = await call_experts(
            call,
            [self._arms[name] for name in order],
            max_attempts=1 if options.purpose == "score" else policy.max_attempts,  # its command retries, and counts
            deadline=deadline,
            attempts=attempts,
        )
        if expert != decision.expert:
            request.decision = with_fallback(decision, expert, cause=attempts.causes[decision.expert])
        self.affinity.put(request.conversation, expert)
        return reply


def first_expert(arm: ExpertSpec | ArmSpec) -> str:
    """Return the name of the declared expert behind an arm; for a recipe, of its first member."""
    return arm.members[0].name if isinstance(arm, ArmSpec) else arm.name
