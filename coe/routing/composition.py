"""`Composition`: one router, one assignment and the experts, from a chat to the first chunk of the response.

It carries out the steps assign, retrieve and call of a `RoutedRequest`, which holds what is known of a request. The
selection itself is the pure function `coe.routing.decision.decide`. A composition owns none of its parts, and is
replaced as a whole on a reload.

`call_experts` calls the candidates until one sends a first chunk. All of this happens before the first byte goes to the
client; after that, nothing is retried. A failed expert is retried on another replica, then the next candidate is
called. When all have failed, the expert that may answer soonest is retried after a pause.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from coe.core import (
    GENERAL,
    PASS_THROUGH_APIS,
    AnswerMemory,
    Call,
    Chat,
    Decision,
    Expert,
    Prediction,
    Reply,
    RequestOptions,
    Router,
)
from coe.errors import (
    Cause,
    ExpertBusy,
    ExpertError,
    ExpertInvalidResponse,
    ExpertTimeout,
    ExpertUnavailable,
    InvalidRequest,
)
from coe.planning.assignment import Assignment
from coe.planning.problem import relative_cost
from coe.registry import ArmSpec, ExpertSpec, Registry
from coe.retrieval.retrieval import Retrieval, RetrievalRequest, RetrievalResult
from coe.routing.classifier import Classifier
from coe.routing.conversation import Affinity, Conversation, read_conversation
from coe.routing.decision import NO_PREVIOUS, CapableArms, Previous, decide, with_fallback
from coe.routing.request_text import NO_TEXT, RoutedText
from coe.routing.rules import Rules
from coe.usage import RecipeLog, SentCall

NO_RETRIEVAL = RetrievalResult()
NO_CONVERSATION = Conversation()
NO_CHAT = Chat("", (), False, frozenset(), 0, {})
NO_OPTIONS = RequestOptions()


@dataclass(slots=True, eq=False)
class Attempts:
    """Counts the attempts of one request, also if it is cancelled during one.

    `count` is the number of requests sent to experts, where a recipe counts as one. `causes` maps each failed expert to
    the cause of its first failure. `recipe_log` has the calls of recipes, None if no recipe may be called.
    `sole_expert` is the name of the expert that is being called if no other expert can take over, else empty.
    `dropped` has what experts left out (`Call.dropped`). `memory` is that for the answers (`Call.memory`). `sent`
    has the calls that reached a server and that it may bill, those of a recipe's members too (`Call.sent`). `caller`
    is the API key (`Call.caller`).
    """

    count: int = 0
    causes: dict[str, Cause] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    memory: AnswerMemory | None = None
    recipe_log: RecipeLog | None = None
    sole_expert: str = ""
    sent: list[SentCall] = field(default_factory=list)
    caller: str = ""


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
        self._capable = CapableArms(registry.arms)
        firsts = [first_expert(registry.arm(name)) for name in assignment.experts]
        self._expert_columns = [registry.expert_names.index(name) for name in firsts]
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
            capable=self._capable,
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
        request.conversation = conversation = read_conversation(chat, options)
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
            capable=self._capable,
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
            caller=attempts.caller,
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


MAX_RETRY_PAUSE_SECONDS = 10.0
"""Longest wait for an expert that sent Retry-After."""
FIRST_RETRY_PAUSE_SECONDS = 0.1
"""Pause before the first retry of a sole candidate that sent no Retry-After. It doubles with each retry."""
TIMER_SLACK_SECONDS = 0.01
"""Added to a pause, as timers of the event loop may fire early by the resolution of its clock."""
_TRANSIENT_ERRORS = (ExpertUnavailable, ExpertBusy)
_REPORT_PRIORITY = (ExpertBusy, ExpertTimeout, ExpertInvalidResponse, ExpertUnavailable)
"""The error to report when all candidates fail: the first kind here, which is the most useful for a client's retry."""


async def call_experts(
    call: Call,
    experts: Sequence[Expert],
    *,
    max_attempts: int,
    deadline: float,
    attempts: Attempts,
) -> tuple[str, Reply]:
    """Call `experts` in order until one sends a first chunk, at most `max_attempts` times. Return its name and reply.

    - An expert whose server just refused a connection is skipped and costs no attempt.
    - A failed expert with another ready replica is retried there before the next candidate is called.
    - If breakers keep the request from all, the first whose server answers health checks is called all the same.
    - When all have failed, the expert with the earliest Retry-After is retried then, if that is before `deadline`
      (event loop clock). A sole candidate that is unavailable is retried after a short pause.

    Raises at once if the first expert that judges the request rejects it. If others failed before with a transient
    error, a rejection is not final. When nothing is left to try, raises the most informative error.
    """
    loop = asyncio.get_running_loop()
    queue = deque((expert, False) for expert in experts)
    """Experts to call, and whether each is called again: then any of its replicas may be selected."""
    failures: list[tuple[Expert, ExpertError]] = []  # transient ones of experts that were not called again
    errors: list[ExpertError] = []
    untranslatable: InvalidRequest | None = None
    excluded, remaining, pause = frozenset[str](), max_attempts, FIRST_RETRY_PAUSE_SECONDS
    while True:
        seconds = 0.0
        if remaining and queue:
            expert, is_retry = queue.popleft()
        else:
            found = _next_retry(failures, pause if len(experts) == 1 else None, forces=not call.forced)
            if found is None or not remaining or found[0] >= deadline - loop.time():
                raise _final_error(errors, failures, untranslatable)
            (seconds, expert), is_retry = found, True
            call = replace(call, forced=call.forced or not attempts.count)
            failures = [failure for failure in failures if failure[0] is not expert]
            excluded, pause = frozenset(), 2 * pause  # a server that was unreachable may be back
        others = [other for other, error in failures if error.request_sent and error.retry_after is not None]
        attempts.sole_expert = "" if queue or any(other is not expert for other in others) else expert.name
        if seconds:
            await asyncio.sleep(seconds)
        remaining -= 1
        attempts.count += 1
        try:
            if is_retry or excluded:
                conversation = b"" if is_retry else call.conversation
                return expert.name, await expert.stream(replace(call, conversation=conversation, exclude=excluded))
            return expert.name, await expert.stream(call)
        except InvalidRequest as error:
            attempts.causes.setdefault(expert.name, "unsupported")
            error.drop_frames()
            untranslatable = untranslatable or error
            is_free = True
        except ExpertError as error:
            attempts.causes.setdefault(expert.name, error.cause)
            error.drop_frames()
            is_free = not error.request_sent
            if not error.retryable and not errors:
                attempts.count -= is_free
                raise
            errors.append(error)
            if error.retryable:
                failures.append((expert, error))
                excluded |= error.unavailable_servers if isinstance(error, ExpertUnavailable) else frozenset()
                if not is_retry and expert.health.ready_replicas > 1:
                    queue.appendleft((expert, True))
        remaining += is_free
        attempts.count -= is_free


def _next_retry(
    failures: Sequence[tuple[Expert, ExpertError]], sole_pause: float | None, *, forces: bool
) -> tuple[float, Expert] | None:
    """Return the expert to call again first and the pause before it; None if none can be. `sole_pause` is that of a
    sole candidate that sent no Retry-After. With `forces`, a breaker keeps no request from all experts.

    Only experts that received the request are waited for. Otherwise all requests for a server that is down would
    accumulate here.
    """
    pauses: list[tuple[float, Expert]] = []
    if forces and not any(error.request_sent for _, error in failures):
        return next(((0.0, expert) for expert, error in failures if error.may_be_forced), None)
    for expert, error in failures:
        if error.request_sent and error.retry_after is not None and error.retry_after <= MAX_RETRY_PAUSE_SECONDS:
            seconds = error.retry_after * random.uniform(1, 1.1) + TIMER_SLACK_SECONDS  # noqa: S311
            pauses.append((seconds, expert))
        elif error.request_sent and error.retry_after is None and sole_pause and isinstance(error, _TRANSIENT_ERRORS):
            pauses.append((sole_pause * random.uniform(0.5, 1.5), expert))  # noqa: S311
    return min(pauses, key=lambda one: one[0], default=None)


def _final_error(
    errors: Sequence[ExpertError], failures: Sequence[tuple[Expert, ExpertError]], untranslatable: InvalidRequest | None
) -> ExpertError | InvalidRequest:
    """Return the most informative error; among equal ones the first, of the best candidate."""
    if not errors and untranslatable is not None:
        return untranslatable

    def rank(error: ExpertError) -> tuple[bool, int]:
        kinds = (rank for rank, kind in enumerate(_REPORT_PRIORITY) if isinstance(error, kind))
        return not error.request_sent, next(kinds, len(_REPORT_PRIORITY))

    error = min(errors, key=rank)
    error.retry_after = min((one.retry_after for _, one in failures if one.retry_after is not None), default=None)
    return error
