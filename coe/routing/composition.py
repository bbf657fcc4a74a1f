"""From a chat to the first piece of an answer: classify, decide (pure), call with fall-back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coe.core import GENERAL, Call, Chat, Decision, Expert, Health, Prediction, Reason, Reply, RequestOptions, Router
from coe.errors import Cause, InvalidRequest
from coe.mapping import Assignment, decision_risk, expected
from coe.registry import AUTO, Policy, Registry
from coe.retrieval.retrieval import Question, Retrieval, RetrievalResult
from coe.routing.affinity import Affinity, conversation_key
from coe.routing.attempts import Attempts, first_answer
from coe.routing.classification import Classifier
from coe.routing.conversation import routing_text
from coe.routing.cost_weight import relative_use
from coe.routing.eligibility import check_one_embedder, check_pin, obstacle
from coe.routing.exploration import choose
from coe.routing.overlay import Overlays

STAKE = 0.3
"""The probability that a surer posterior would choose another expert from which on it is worth a look: below, on public
prompts, looks were as often wrong as right."""
_IDLE = Health()
NO_RETRIEVAL = RetrievalResult()


@dataclass(frozen=True, slots=True)
class RoutedAnswer:
    """An accepted answer: who gave it, and the reply whose first piece is there."""

    decision: Decision
    reply: Reply


def decide(
    chat: Chat,
    prediction: Prediction,
    *,
    registry: Registry,
    assignment: Assignment,
    confidence_threshold: float = 0.0,
    previous: str | None = None,
    charge: NDArray[np.float64] | None = None,
    health_by_expert: Mapping[str, Health] = MappingProxyType({}),
    uniform: float | None = None,
) -> Decision:
    """Choose the expert and the order of fall-back. Pure.

    Hard filters first (API, capabilities, context length), then the pinned expert, the `previous` one of a conversation
    unless another is clearly better, the general one when the router is unsure, or the expert of highest expected
    quality under the posterior minus its price (Jain et al. 2024, arXiv 2412.01868, with the posterior in place of its
    most likely class). Unsure is a confidence below the declared `confidence_threshold`, or below
    `confidence_threshold`, which training found, where none is declared. `charge`, shape (n_experts,) in units of
    quality, is taken off beside the plan's prices (below 0: what passages are expected to add). By their
    `health_by_expert` (one not named there is up and idle) experts that are down go behind all that are up, and an
    overloaded choice gives way to one that is expected to be worse by at most the declared `max_quality_loss`; neither
    touches a pin. The chosen one's sibling comes next. `uniform`, drawn from [0, 1), makes a choice by expected quality
    explore as declared, among experts that are up and not overloaded; the decision then has its exact propensity. Where
    the first choice is down and another expert is up, the decision is a fallback that names the first choice and the
    cause; it never explores. Raises ModelNotFound, or InvalidRequest when none can."""
    able = [spec.name for spec in registry.experts if not obstacle(chat, spec)]
    category, confidence = assignment.categories[prediction.best], prediction.confidence
    if chat.model != AUTO:
        check_pin(chat, registry, able)
        return Decision(chat.model, category, confidence, "pinned", (chat.model,))
    if not able:
        obstacles = "; ".join(obstacle(chat, spec) for spec in registry.experts)
        raise InvalidRequest(f"no expert can take this request: {obstacles}", code="no_capable_expert")
    check_one_embedder(chat, able)
    value, price = expected(assignment, prediction.probabilities), assignment.price
    if charge is not None:
        value, price = value - charge, price + charge
    utility = dict(zip(assignment.experts, value.tolist(), strict=True))
    field = _Field.of(able, utility, health_by_expert)
    policy = registry.policy
    unsure = confidence < (confidence_threshold if policy.confidence_threshold is None else policy.confidence_threshold)
    general = registry.general_expert if unsure else None
    first, reason = _chosen(field, previous=previous, general=general, policy=policy)
    propensity, avoided = 1.0, field.avoided(previous=previous, general=general, policy=policy)
    if avoided:
        reason = "fallback"
    if uniform is not None and reason == "routed":
        untried = assignment.untried(prediction.best)
        first, reason, propensity = _explored(first, field, policy=policy, uniform=uniform, untried=untried)
    stand_in = registry.expert(first).stand_in
    candidates = (first, *sorted((name for name in field.ranked if name != first), key=(stand_in or first).__ne__))
    paid = dict(zip(assignment.experts, price.tolist(), strict=True))
    return Decision(
        first,
        category,
        confidence,
        reason,
        candidates,
        propensity,
        utility=tuple(utility[name] for name in candidates),
        price=tuple(paid[name] for name in candidates) if any(paid.values()) else (),
        fallback_from=avoided,
        cause=(health_by_expert[avoided].cause or "circuit_open") if avoided else "",
    )


@dataclass(frozen=True, slots=True)
class _Field:
    """The able experts: `ranked` by `utility`, those that are down behind all that are up; `trusted` are those that are
    up, or all where none is; `free` are up and not overloaded."""

    utility: Mapping[str, float]
    ranked: tuple[str, ...]
    trusted: tuple[str, ...]
    free: tuple[str, ...]

    @classmethod
    def of(cls, able: Sequence[str], utility: Mapping[str, float], health_by_expert: Mapping[str, Health]) -> _Field:
        ranked = sorted((name for name in utility if name in able), key=utility.__getitem__, reverse=True)
        up = tuple(name for name in ranked if health_by_expert.get(name, _IDLE).up)
        down = tuple(name for name in ranked if name not in up)
        free = tuple(name for name in up if health_by_expert.get(name, _IDLE).load < 1)
        return cls(utility, (*up, *down), up or down, free)

    def avoided(self, *, previous: str | None, general: str | None, policy: Policy) -> str:
        """Return the expert that would be asked if all were up, where it is down and another one is up; else ""."""
        if len(self.trusted) == len(self.ranked):
            return ""
        ranked = tuple(sorted(self.ranked, key=self.utility.__getitem__, reverse=True))
        first, _ = _preferred(ranked, self.utility, previous=previous, general=general, policy=policy)
        return "" if first in self.trusted else first


def _preferred(
    ranked: tuple[str, ...],
    utility: Mapping[str, float],
    *,
    previous: str | None,
    general: str | None,
    policy: Policy,
) -> tuple[str, Reason]:
    """Return the first choice among `ranked` whatever its load, and why it is."""
    first = ranked[0]
    if previous in ranked and (general or utility[first] - utility[previous] <= policy.sticky_margin):
        return previous, "sticky"
    return (general, "uncertain") if general in ranked else (first, "routed")


def _chosen(field: _Field, *, previous: str | None, general: str | None, policy: Policy) -> tuple[str, Reason]:
    """Who is asked, and why. `general` is the expert for doubt, None where there is none."""
    utility = field.utility
    first, reason = _preferred(field.trusted, utility, previous=previous, general=general, policy=policy)
    if first not in field.free and field.free and utility[first] - utility[field.free[0]] <= policy.max_quality_loss:
        first, reason = field.free[0], "spilled"
    return first, reason


def _explored(
    best: str, field: _Field, *, policy: Policy, uniform: float, untried: frozenset[str] = frozenset()
) -> tuple[str, Reason, float]:
    """The expert that is asked, why, and how likely that was. An `untried` one counts as just within the loss."""
    names = tuple(dict.fromkeys((best, *field.free)))
    exploration = policy.exploration
    least = field.utility[best] - exploration.max_quality_loss
    values = np.array([least if name in untried else field.utility[name] for name in names])
    if np.isneginf(field.utility[best]):  # the plan has no expert for this among the able ones
        return best, "routed", 1.0
    index, propensity = choose(values, rate=exploration.rate, loss=exploration.max_quality_loss, uniform=uniform)
    return names[index], "explored" if index else "routed", propensity


class Composition:
    """Router, assignment and experts put together. Thread-safe as far as its router is; owns none of its parts."""

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
    ) -> None:
        self.registry = registry
        self.router = router
        self.assignment = assignment
        self.assignment_digest = assignment.digest[:16]
        self.experts = experts
        self._doubt = (
            confidence_threshold
            if registry.policy.confidence_threshold is None
            else registry.policy.confidence_threshold
        )
        self._use = relative_use(registry)
        self.affinity = Affinity() if affinity is None else affinity
        self._classifier = Classifier(
            router, overlays=overlays or Overlays(), threads=threads, encoder_timeout=registry.router.encoder_timeout
        )
        self._retrieval = retrieval

    async def classify(self, chat: Chat, tenant: str | None) -> tuple[str, Prediction]:
        """The routed text and its posterior, with the tenant's overlay where it has one."""
        text = routing_text(chat)
        return text, await self.read(text, chat, tenant)

    async def read(self, text: str, chat: Chat, tenant: str | None) -> Prediction:
        """The same of a text that was made of the chat before."""
        return await self._classifier.classify(text, tenant, at_stake=partial(self._at_stake, chat))

    def overlaid(self, prediction: Prediction, tenant: str | None) -> Prediction:
        """The router's own posterior, as the tenant's overlay has it."""
        return self._classifier.overlaid(prediction, tenant)

    def _at_stake(self, chat: Chat, prediction: Prediction) -> bool:
        """Whether a surer posterior might change the choice of the expert, or of passages for it."""
        if self._retrieval is not None:
            return True
        if chat.model != AUTO:
            return False
        able = [index for index, spec in enumerate(self.registry.experts) if not obstacle(chat, spec)]
        if len(able) < 2:
            return False
        return (
            prediction.confidence < self._doubt
            or decision_risk(self.assignment, prediction.probabilities, able) > STAKE
        )

    def assign(self, chat: Chat, prediction: Prediction, options: RequestOptions) -> Decision:
        """`decide` with the parts in hand; remembers nothing. Thrift slides from best (0) to cheapest (1)."""
        explores = self.registry.policy.exploration.rate > 0
        uniform = random.random() if explores else None  # noqa: S311 (nothing secret hangs on it)
        return self.weigh(chat, prediction, options, previous=self.affinity.get(chat, options), uniform=uniform)

    def weigh(
        self,
        chat: Chat,
        prediction: Prediction,
        options: RequestOptions,
        *,
        previous: str | None = None,
        uniform: float | None = None,
    ) -> Decision:
        """The same where it is known with whom the conversation is, and what chance says."""
        return decide(
            chat,
            prediction,
            registry=self.registry,
            assignment=self.assignment,
            confidence_threshold=self._doubt,
            previous=previous,
            charge=self._charge(prediction, options),
            health_by_expert={name: expert.health for name, expert in self.experts.items()},
            uniform=uniform,
        )

    def _charge(self, prediction: Prediction, options: RequestOptions) -> NDArray[np.float64] | None:
        """What is taken off each expert's worth: its use by the cost_weight asked for, less what passages add. So a
        small expert with passages may go before a large one without."""
        lift = self._retrieval.lift(prediction, options.retrieval) if self._retrieval else None
        if not options.cost_weight:
            return None if lift is None else -lift
        use = options.cost_weight * self._use
        return use if lift is None else use - lift

    async def consult(
        self,
        chat: Chat,
        decision: Decision,
        options: RequestOptions,
        *,
        text: str,
        prediction: Prediction,
        tenant: str | None,
    ) -> tuple[Chat, Decision, RetrievalResult]:
        """The chat, with passages where they pay. Where passages that the decision counted on do not come, it is made
        anew without them. Never fails."""
        retrieval = self._retrieval
        if retrieval is None:
            return chat, decision, NO_RETRIEVAL
        specs = [self.registry.expert(name) for name in decision.candidates[: self.registry.policy.max_attempts]]
        context = min(spec.context_length for spec in specs)
        expert = self.registry.expert_names.index(decision.expert)
        question = Question(chat, text, prediction, expert, context, tenant, options.retrieval)
        counted_on = retrieval.lift(prediction, options.retrieval) is not None
        given, found = await retrieval.consult(question)
        if counted_on and found.status not in ("open", "held") and decision.reason in ("routed", "spilled", "fallback"):
            decision = self.assign(chat, prediction, replace(options, retrieval="off"))
        return given, decision, found

    async def call(
        self, chat: Chat, decision: Decision, options: RequestOptions, *, deadline: float, attempts: Attempts
    ) -> RoutedAnswer:
        """Ask the candidates until one gives a first piece, before `deadline` by the event loop's clock, and count the
        `attempts`. Raises an ExpertError, or InvalidRequest, when none does."""
        policy = self.registry.policy
        conversation = conversation_key(chat, options) if chat.messages else b""  # texts to embed are none
        call = Call(
            chat.fields,
            chat.stream,
            policy.first_token_timeout if chat.stream else policy.response_timeout,
            policy.stream_idle_timeout,
            api=chat.api,
            headers=options.passed,
            conversation=conversation,
            category=decision.category,
            stand_in=decision.candidates[1] if len(decision.candidates) > 1 else "",
            hold_until=min(deadline, asyncio.get_running_loop().time() + self.registry.hold),
            caller=options.tenant or "",
        )
        accepted = await first_answer(
            call,
            [self.experts[name] for name in decision.candidates],
            max_attempts=policy.max_attempts,
            deadline=deadline,
            attempts=attempts,
            hedge=policy.hedge,
        )
        if accepted.expert != decision.expert:
            decision = answered_by(decision, accepted.expert, cause=attempts.causes.get(decision.expert, "hedged"))
        if conversation:
            self.affinity.put(chat, conversation, accepted.expert)
        return RoutedAnswer(decision, accepted.reply)


def answered_by(decision: Decision, expert: str, *, cause: Cause) -> Decision:
    """The decision, with another expert in place of its own, which did not answer for `cause`."""
    first, why = (decision.fallback_from, decision.cause) if decision.fallback_from else (decision.expert, cause)
    return replace(decision, expert=expert, reason="fallback", fallback_from=first, cause=why)


def declared_assignment(registry: Registry, categories: tuple[str, ...]) -> Assignment:
    """The mapping written in experts.yaml, over the router's categories."""
    return Assignment.declared(
        categories, registry.expert_names, registry.assignment, general=registry.assignment[GENERAL]
    )
