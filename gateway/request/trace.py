"""The state of one request: its steps with their times, decision, reply and outcome.

The request pipeline (`gateway.request.line`) fills in a `Trace` step by step. The response headers, metrics,
OpenTelemetry spans, access log and routing record are derived from it. It executes no step itself.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from coe.core import PASS_THROUGH_APIS, Api, Chat, Decision, Prediction, Reply, RequestOptions
from coe.errors import ExpertError, RequestError
from coe.experts.http.sse import EVENT_STREAM
from coe.experts.translation.expert import TRANSLATED_APIS, dropped_parts, is_translated
from coe.registry import ExpertSpec
from coe.retrieval.retrieval import RetrievalResult
from coe.routing.attempts import Attempts
from coe.routing.composition import NO_RETRIEVAL, RoutedReply
from coe.routing.decision import with_fallback
from coe.routing.request_text import NO_TEXT, RoutedText, read_request
from coe.usage import MemberCall, RecipeLog, RecipeUsage, SentCall, Usage
from gateway.access import Allowance, Caller
from gateway.cache.answer import CachedAnswer, CacheUse
from gateway.serving_state import Serving
from gateway.stored_responses.conversation import StoredUse

if TYPE_CHECKING:
    from opentelemetry.trace import Span

StepName = Literal["admit", "parse", "cache", "classify", "assign", "retrieve", "call", "relay"]


@dataclass(slots=True, eq=False)
class Trace:
    """The state of one request, and a context manager that times its current step. Until a step sets another outcome,
    it is `aborted`: the client disconnected, or the process ended."""

    serving: Serving
    api: Api
    time: float = field(default_factory=time.time)
    """Arrival, in Unix seconds; `start` is the same by `time.perf_counter`."""
    start: float = field(init=False)
    request_id: str = field(init=False)
    began: dict[StepName, float] = field(init=False)
    """When each step began, in order, by `time.perf_counter`."""
    ended: dict[StepName, float] = field(init=False)
    """When each step ended. Only the last may be missing: it is not complete, or it failed."""
    outcome: str = "aborted"
    client_left: bool = False
    caller: Caller = Caller()  # noqa: RUF009  (immutable)
    allowance: Allowance | None = None
    options: RequestOptions | None = None
    chat: Chat | None = None
    requested_model: str = ""
    """`model` as sent by the client; `chat.model` is the resolved name."""
    routed: RoutedText = NO_TEXT
    """The text that was classified."""
    prediction: Prediction | None = None
    decision: Decision | None = None
    retrieval_result: RetrievalResult = NO_RETRIEVAL
    attempts: Attempts = field(default_factory=Attempts)
    reply: Reply | None = None
    status: int | None = None
    """HTTP status of the response; None if no response began."""
    spans: tuple[Span, int] | None = None
    """The span of the request, and the id of the one of its call; None without a collector."""
    cache: CacheUse | None = None
    """None if the request does not use the answer cache."""
    dropped: tuple[str, ...] = ()
    """Left out of the request: types of parts that the expert's server cannot read, and names of fields."""
    in_part: bool = False
    """True while a part of the answer is being sent into which no error may be inserted."""
    stored: StoredUse | None = None
    """None unless the request's answer can be referred to later."""
    step_name: StepName = field(init=False)
    """The step that began last."""

    def __post_init__(self) -> None:
        self.start = start = perf_counter()
        self.began, self.ended = {"admit": start}, {}
        self.step_name = "admit"
        self.request_id = new_request_id(self.time)

    def step(self, name: StepName) -> Self:
        """Times a step, as a context manager. Steps do not overlap; `admit` began when the request arrived."""
        if name != "admit":
            self.step_name = name
            self.began[name] = perf_counter()
        return self

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.ended[self.step_name] = perf_counter()

    def elapsed_ms(self) -> float:
        """Milliseconds from the arrival of the request to the end of its answer, or until now without one."""
        ended = self.ended_ms("relay")
        return (perf_counter() - self.start) * 1000 if ended is None else ended

    def step_times_ms(self, end: float) -> list[tuple[StepName, float, float, bool]]:
        """Each step's name, its begin and end in milliseconds from arrival, and whether it completed. An incomplete
        step ends at `end`."""
        return [
            (name, (began - self.start) * 1000, end if ended is None else ended, ended is not None)
            for name, began in self.began.items()
            for ended in (self.ended_ms(name),)
        ]

    def ended_ms(self, name: StepName) -> float | None:
        """Milliseconds from the arrival of the request to the end of a step; None if it did not complete."""
        ended = self.ended.get(name)
        return None if ended is None else (ended - self.start) * 1000

    @property
    def routing_ms(self) -> float:
        """Milliseconds from arrival to the decision, 0 without one. For a cached answer, to the end of the lookup."""
        return self.ended_ms("assign" if self.cache is None or self.cache.answer is None else "cache") or 0.0

    @property
    def first_token_ms(self) -> float | None:
        """Milliseconds from arrival to the first chunk of the answer, None without one."""
        return self.ended_ms("call")

    def answered(self, answer: RoutedReply) -> None:
        """Record the expert's accepted answer."""
        self.status = 200
        self.decision, self.reply = answer.decision, answer.reply
        if self.api in TRANSLATED_APIS and self._is_translated() and self.chat is not None:
            self.dropped = dropped_parts(self.api, self.chat.fields)
        if self.attempts.dropped:
            self.dropped += tuple(sorted(self.attempts.dropped.difference(self.dropped)))

    def _is_translated(self) -> bool:
        """True if the request is translated for the expert that answers; a recipe takes chats alone."""
        assert self.decision is not None
        arm = self.serving.registry.arm(self.decision.expert)
        return isinstance(arm, ExpertSpec) and is_translated(arm, self.api)

    def replayed(self, answer: CachedAnswer, reply: Reply) -> None:
        """Record an answer from the cache. No expert is called, so nothing is charged."""
        assert self.chat is not None
        self.status, self.reply = 200, reply
        self.routed, self.prediction, self.decision = read_request(self.chat), answer.prediction, answer.decision

    @property
    def stream_begun(self) -> bool:
        """True if the client gets, or is about to get, the headers of a stream: a failure is an event of it."""
        if self.reply is not None:
            return self.reply.media_type == EVENT_STREAM
        return self.status == 200 and self.chat is not None and self.chat.stream

    @property
    def cached(self) -> CachedAnswer | None:
        """The answer that came from the cache, None without one."""
        return None if self.cache is None else self.cache.answer

    def failed(self, error: RequestError) -> None:
        """Record the error that ends the request, and its cause in the decision."""
        self.outcome = error.code
        decision = self.decision
        if not isinstance(error, ExpertError) or decision is None:
            return
        if self.reply is None and error.expert not in ("", decision.expert):
            cause = self.attempts.causes.get(decision.expert, error.cause)
            self.decision = with_fallback(decision, error.expert, cause=cause)
        elif not decision.cause:
            self.decision = replace(decision, cause=error.cause)

    @property
    def only_local(self) -> bool:
        """True if only local experts may receive the request. Its text is not stored, as jobs send stored texts to any
        expert."""
        return self.options is not None and self.options.rule is not None and self.options.rule.only_local

    @property
    def recipe_log(self) -> RecipeLog | None:
        """The calls of the recipes that were called, None if none was."""
        log = self.attempts.recipe_log
        return log if log is not None and log.calls else None

    @property
    def expert(self) -> str:
        """The expert that answers or failed last, empty without a decision. For a recipe, the member
        that answers, or else the arm."""
        if self.decision is None:
            return ""
        if self.cache is not None and (cached := self.cache.answer) is not None:
            return cached.answered_by
        name = self.decision.expert
        if (log := self.attempts.recipe_log) is None or name not in self.serving.composition.recipes:
            return name
        return name if (accepted := log.accepted) is None else accepted.expert

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers known so far. Names are ASCII by declaration; none holds text of the prompt."""
        found = [(b"x-request-id", self.request_id.encode())]
        if self.decision is not None:
            self._add_decision(found, self.decision)
        if self.dropped:
            found.append((b"x-coe-dropped", ", ".join(self.dropped).encode()))
        if self.cache is not None:
            found.append((b"x-coe-cache", self.cache.result.encode()))
        if "retrieve" in self.ended:
            found.append((b"x-coe-retrieval", self._retrieval_header()))
        if self.allowance is not None:
            found += self.allowance.headers()
        if self.options is not None and self.options.explain:
            found.append((b"server-timing", self._server_timing()))
        return found

    def early_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers to send before the answer begins, once no other expert can take over."""
        decided, sole = self.decision, self.attempts.sole_expert
        if decided is not None and sole != decided.expert:
            self.decision = with_fallback(decided, sole, cause=self.attempts.causes[decided.expert])
        try:
            return self.headers()
        finally:
            self.decision = decided  # changed for the headers only; `answered` or `failed` sets the recorded decision

    def _add_decision(self, found: list[tuple[bytes, bytes]], decision: Decision) -> None:
        """Add the headers about the decision and its calls."""
        found += (
            (b"x-coe-expert", self.expert.encode()),
            (b"x-coe-category", decision.category.encode()),
            (b"x-coe-confidence", b"%.3f" % decision.confidence),
            (b"x-coe-reason", decision.reason.encode()),
            (b"x-coe-router", self.serving.composition.router.version.encode()),
            (b"x-coe-attempts", b"%d" % self.attempts.count),
            (b"x-coe-overhead-ms", b"%.3f" % self.routing_ms),
        )
        if self.prediction is not None and self.prediction.language:
            found.append((b"x-coe-language", self.prediction.language.encode()))
        if decision.rule:
            found.append((b"x-coe-rule", decision.rule.encode()))
        if decision.fallback_from:
            found.append((b"x-coe-fallback-from", decision.fallback_from.encode()))
        if decision.cause:
            found.append((b"x-coe-cause", decision.cause.encode()))
        if (log := self.recipe_log) is not None:
            found += (
                (b"x-coe-recipe", log.recipe.encode()),
                (b"x-coe-steps", b"%d" % log.steps),
                (b"x-coe-calls", b"%d" % len(log.calls)),
            )

    def _retrieval_header(self) -> bytes:
        """Return the retrieval status; if it is `used`, also the number of passages and their approximate tokens."""
        result = self.retrieval_result
        if result.status != "used":
            return result.status.encode()
        return b"used; passages=%d; tokens=%d" % (len(result.passages), result.tokens)

    def _server_timing(self) -> bytes:
        """The header Server-Timing (W3C): the milliseconds of each completed step."""
        timed = [f"{name};dur={(ended - self.began[name]) * 1000:.3f}" for name, ended in self.ended.items()]
        return ", ".join(timed).encode()

    @property
    def usage(self) -> Usage | None:
        """Tokens of the answer received so far, and of the members of a recipe that were called before an expert
        answered in its place; without an answer, of these members alone."""
        own = None if self.reply is None else self.reply.usage
        if (log := self.attempts.recipe_log) is None or (own is not None and own.parts):
            return own
        members = RecipeUsage(log)
        if not members.parts:
            return own
        return members if own is None else RecipeUsage(log, (self.expert, own))

    @property
    def cost(self) -> float | None:
        """US dollars of the calls whose tokens were counted, by the experts' declared prices; None without one, and for
        a recipe if not all were counted. An answer from the cache costs nothing."""
        if self.cached is not None:
            return 0.0
        costs = [self.cost_of(call) for call in self.attempts.sent]
        known = [cost for cost in costs if cost is not None]
        is_partial = len(known) < len(costs) and self.recipe_log is not None
        return None if not known or is_partial else sum(known)

    @property
    def unpriced(self) -> int:
        """Number of sent calls whose tokens no server counted."""
        return sum([self.cost_of(call) is None for call in self.attempts.sent])

    def cost_of(self, call: SentCall | MemberCall) -> float | None:
        """US dollars of a call by the declared prices of its expert; None if its tokens are unknown."""
        if (usage := call.usage) is None:
            return None
        prices = self.serving.composition.prices[call.expert]
        output_tokens = usage.output_tokens
        if self.api == "embeddings" or (output_tokens is None and self.api in PASS_THROUGH_APIS):
            output_tokens = 0  # such servers report none
        if usage.input_tokens is None or output_tokens is None:
            return None
        return prices.cost(usage.input_tokens, output_tokens, usage.cached_tokens or 0)


RANDOM_PARTS = 64
"""Random parts of request ids that one system call provides. Each call releases the interpreter lock, and may have to
wait for it."""
_random_parts: list[str] = []
os.register_at_fork(after_in_child=_random_parts.clear)


def new_request_id(now: float) -> str:
    """A unique id: milliseconds since 1970, so that an index of the log grows at its end, and 80 random bits."""
    if not _random_parts:
        digits = os.urandom(10 * RANDOM_PARTS).hex()
        _random_parts.extend(digits[start : start + 20] for start in range(0, len(digits), 20))
    return f"req_{int(now * 1000):012x}{_random_parts.pop()}"
