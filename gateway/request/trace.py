"""The state of one request: its options, its steps with their times, decision, reply and outcome.

`gateway.chat` and the steps of `coe.routing.composition` fill in a `Trace`. The response headers, metrics,
OpenTelemetry spans, access log and routing record are derived from it. It executes no step itself.

`read_options` reads the head into options: without a header, the value declared in experts.yaml applies.
`resolve_model` adds what an alias or operating point in `model` stands for, `with_rules` the rules that match.
`gateway/endpoints/openapi.json` describes each header. A header that is repeated counts as one whose values are
separated by commas, so most are then refused.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

from coe.core import (
    NO_RECIPE,
    PASS_THROUGH_APIS,
    TRANSLATED_APIS,
    Api,
    Chat,
    Purpose,
    Reply,
    RequestOptions,
    RetrievalMode,
)
from coe.errors import ExpertError, InvalidRequest, RequestError
from coe.experts.http.sse import EVENT_STREAM
from coe.experts.translation.expert import dropped_parts, is_translated
from coe.registry import AUTO, ExpertSpec, Policy, Registry
from coe.registry.permission import only_local
from coe.registry.sections import ResolvedModel
from coe.routing.composition import RoutedRequest
from coe.routing.decision import check_model, check_recipe, with_fallback
from coe.routing.request_text import read_request
from coe.routing.rules import RequestFacts, Rules
from coe.usage import MemberCall, RecipeLog, RecipeUsage, SentCall, Usage
from gateway.access.access import Caller
from gateway.access.allowance import Allowance, input_range
from gateway.request.body import Head
from gateway.request.cached_answer import CachedAnswer, CacheUse
from gateway.snapshot import Snapshot
from gateway.stored_responses import StoredUse

if TYPE_CHECKING:
    from opentelemetry.trace import Span

RANDOM_PARTS = 256
"""Random parts of request ids that one system call brings."""
_random_digits: list[str] = []
os.register_at_fork(after_in_child=_random_digits.clear)

StepName = Literal["admit", "parse", "cache", "classify", "assign", "retrieve", "call", "relay"]


@dataclass(slots=True, eq=False, kw_only=True)
class Trace(RoutedRequest):
    """All that is known of one request. Until a step sets another outcome, it is `aborted`: the client disconnected, or
    the process ended."""

    snapshot: Snapshot
    api: Api
    head: Head
    time: float = field(default_factory=time.time)
    """Arrival, in Unix seconds; `start` is the same by `time.perf_counter`."""
    start: float = field(default_factory=perf_counter)
    request_id: str = field(init=False)
    began: dict[StepName, float] = field(init=False)
    """Start of each step, in order, by `time.perf_counter`."""
    ended: dict[StepName, float] = field(default_factory=dict)
    """End of each step. Only the last may be missing: it is not complete, or it failed."""
    step_name: StepName = "admit"
    """The step that began last."""
    outcome: str = "aborted"
    client_left: bool = False
    caller: Caller = Caller()  # noqa: RUF009  (immutable)
    allowance: Allowance | None = None
    requested_model: str = ""
    """`model` as sent by the client; `chat.model` is the resolved name."""
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

    def __post_init__(self) -> None:
        self.began = {"admit": self.start}
        if not _random_digits:  # the system call takes ten times as long as all the rest
            digits = os.urandom(10 * RANDOM_PARTS).hex()
            _random_digits.extend(digits[start : start + 20] for start in range(0, len(digits), 20))
        # milliseconds since 1970, so that an index of the log grows at its end, and 80 random bits
        self.request_id = f"req_{int(self.time * 1000):012x}{_random_digits.pop()}"

    def step(self, name: StepName) -> None:
        """Begin a step, which ends the one before. `admit` began when the request arrived."""
        self.ended[self.step_name] = self.began[name] = perf_counter()
        self.step_name = name

    def complete(self) -> None:
        """End the last step, after which the answer is sent."""
        self.ended[self.step_name] = perf_counter()
        self.outcome = "ok"

    def elapsed_ms(self) -> float:
        """Milliseconds from the arrival of the request to the end of its answer, or until now without one."""
        return (self.ended.get("relay", perf_counter()) - self.start) * 1000

    def step_times_ms(self, end: float) -> list[tuple[StepName, float, float, bool]]:
        """Each step's name, its begin and end in milliseconds from arrival, and whether it completed. An incomplete
        step ends at `end`."""
        times: list[tuple[StepName, float, float, bool]] = []
        for name, began in self.began.items():
            ended = self.ended.get(name)
            until = end if ended is None else (ended - self.start) * 1000
            times.append((name, (began - self.start) * 1000, until, ended is not None))
        return times

    @property
    def routing_ms(self) -> float:
        """Milliseconds from arrival to the decision, 0 without one. For a cached answer, to the end of the lookup."""
        step: StepName = "assign" if self.cache is None or self.cache.answer is None else "cache"
        return (self.ended.get(step, self.start) - self.start) * 1000

    @property
    def first_token_ms(self) -> float | None:
        """Milliseconds from arrival to the first chunk of the answer, None without one."""
        ended = self.ended.get("call")
        return None if ended is None else (ended - self.start) * 1000

    def answered(self, reply: Reply) -> None:
        """Record the expert's accepted answer."""
        self.status, self.reply = 200, reply
        if self.api in TRANSLATED_APIS and self.decision is not None:
            arm = self.snapshot.registry.arm(self.decision.expert)
            if isinstance(arm, ExpertSpec) and is_translated(arm, self.api):  # a recipe takes chats alone
                self.dropped = dropped_parts(self.api, self.chat.fields)
        if self.attempts.dropped:
            self.dropped += tuple(sorted(self.attempts.dropped.difference(self.dropped)))

    def replayed(self, answer: CachedAnswer, reply: Reply) -> None:
        """Record an answer from the cache. No expert is called, so nothing is charged."""
        self.status, self.reply = 200, reply
        self.routed, self.prediction, self.decision = read_request(self.chat), answer.prediction, answer.decision

    @property
    def stream_begun(self) -> bool:
        """True if the client gets, or is about to get, the headers of a stream: a failure is an event of it."""
        if self.reply is not None:
            return self.reply.media_type == EVENT_STREAM
        return self.status == 200 and self.chat.stream

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
        return self.options.rule is not None and self.options.rule.only_local

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
        if (log := self.attempts.recipe_log) is None or name not in self.snapshot.composition.recipes:
            return name
        return name if (accepted := log.accepted) is None else accepted.expert

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The response headers known so far. Names are ASCII by declaration; none holds text of the prompt."""
        decision, log, result = self.decision, self.recipe_log, self.retrieval_result
        headers = [(b"x-request-id", self.request_id.encode())]
        if decision is not None:
            headers += (
                (b"x-coe-expert", self.expert.encode()),
                (b"x-coe-category", decision.category.encode()),
                (b"x-coe-confidence", b"%.3f" % decision.confidence),
                (b"x-coe-reason", decision.reason.encode()),
                (b"x-coe-router", self.snapshot.composition.router.version.encode()),
                (b"x-coe-attempts", b"%d" % self.attempts.count),
                (b"x-coe-overhead-ms", b"%.3f" % self.routing_ms),
            )
            if self.prediction is not None and (language := self.prediction.language):
                headers.append((b"x-coe-language", language.encode()))
            if decision.rule or decision.fallback_from or decision.cause:
                texts = {"rule": decision.rule, "fallback-from": decision.fallback_from, "cause": decision.cause}
                headers += [(b"x-coe-%b" % name.encode(), text.encode()) for name, text in texts.items() if text]
            if log is not None:
                counts = ((b"x-coe-steps", b"%d" % log.steps), (b"x-coe-calls", b"%d" % len(log.calls)))
                headers += ((b"x-coe-recipe", log.recipe.encode()), *counts)
        if self.dropped:
            headers.append((b"x-coe-dropped", ", ".join(self.dropped).encode()))
        if self.cache is not None:
            headers.append((b"x-coe-cache", self.cache.result.encode()))
        if "retrieve" in self.ended:
            used = f"; passages={len(result.passages)}; tokens={result.tokens}" if result.status == "used" else ""
            headers.append((b"x-coe-retrieval", f"{result.status}{used}".encode()))
        if self.allowance is not None:
            headers += self.allowance.headers()
        if self.options.explain:  # the header Server-Timing (W3C): the milliseconds of each completed step
            timed = [f"{name};dur={(ended - self.began[name]) * 1000:.3f}" for name, ended in self.ended.items()]
            headers.append((b"server-timing", ", ".join(timed).encode()))
        return headers

    def early_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers to send before the answer begins, once no other expert can take over."""
        decided, sole = self.decision, self.attempts.sole_expert
        if decided is not None and sole != decided.expert:
            self.decision = with_fallback(decided, sole, cause=self.attempts.causes[decided.expert])
        try:
            return self.headers()
        finally:
            self.decision = decided  # changed for the headers only; `answered` or `failed` sets the recorded decision

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
        prices = self.snapshot.composition.prices[call.expert]
        output_tokens = usage.output_tokens
        if self.api == "embeddings" or (output_tokens is None and self.api in PASS_THROUGH_APIS):
            output_tokens = 0  # such servers report none
        if usage.input_tokens is None or output_tokens is None:
            return None
        return prices.cost(usage.input_tokens, output_tokens, usage.cached_tokens or 0)


MAX_SESSION_CHARACTERS = 128
MAX_RECIPE_CHARACTERS = 80
"""Characters of the name of a recipe or arm."""
MAX_VERSION_CHARACTERS = 2048
"""Characters of each header that names versions."""
SESSION, COST_WEIGHT = b"x-session-id", b"x-coe-cost-weight"
TIMEOUT, RECIPE, ONLY_LOCAL = b"x-coe-timeout", b"x-coe-recipe", b"x-coe-only-local"
_TRACE_HEADERS = (b"traceparent", b"tracestate")
_VERSIONS = (b"anthropic-version", b"anthropic-beta")
"""Headers of a Messages request that its expert's server receives too. No other client header reaches a server."""
_CHOICES: Mapping[bytes, tuple[str, Mapping[bytes, Any]]] = {
    b"x-coe-retrieval": ("retrieval", {word.encode(): word for word in get_args(RetrievalMode)}),
    b"x-coe-explain": ("explain", {b"0": False, b"1": True}),
    b"x-coe-cache": ("cache", {b"on": True, b"off": False}),
    ONLY_LOCAL: ("only_local", {b"true": True, b"false": False}),
    b"x-coe-purpose": ("purpose", {word.encode(): word for word in get_args(Purpose)}),
}
"""The option that each header sets, and its values."""
_HEADERS = frozenset((*_CHOICES, SESSION, COST_WEIGHT, TIMEOUT, RECIPE, *_TRACE_HEADERS))


def read_options(head: Head, policy: Policy, *, caller: Caller, api: Api = "chat") -> RequestOptions:
    """Read x-session-id, the x-coe-* headers, the trace context and, for the Messages API, Anthropic's versions. The
    rule of the caller's API key can only become stricter.

    Raises InvalidRequest for an unknown choice, a number outside the declared limits, or an invalid version.
    """
    if api != "messages" and head.keys().isdisjoint(_HEADERS):  # the usual case
        return RequestOptions(None, policy.cost_weight, policy.timeout, tenant=caller.tenant, rule=caller.rule)
    chosen: dict[str, Any] = {"cost_weight": policy.cost_weight, "timeout": policy.timeout, "rule": caller.rule}
    if not head.keys().isdisjoint(_HEADERS):
        for name, (option, values) in _CHOICES.items():
            if name in head:
                if head[name] not in values:
                    text = name.decode()
                    raise InvalidRequest(f"{text} must be one of {b', '.join(values).decode()}", param=text)
                chosen[option] = values[head[name]]
        if 0 < len(session := head.get(SESSION, b"")) <= MAX_SESSION_CHARACTERS:
            chosen["session"] = session.decode("latin-1")
        if COST_WEIGHT in head:
            chosen["cost_weight"] = _number(head, COST_WEIGHT, *policy.cost_weight_limits)
        if TIMEOUT in head:
            chosen["timeout"] = min(_number(head, TIMEOUT, 0.001, 86400.0), policy.timeout)
        if RECIPE in head:
            chosen["recipe"] = _ascii(head, RECIPE, MAX_RECIPE_CHARACTERS, what="the name of a recipe or off, ")
        if chosen.pop("only_local", False):
            chosen["rule"] = only_local(caller.rule)
        trace = {name.decode(): head[name] for name in _TRACE_HEADERS if name in head}
        # the standard demands ASCII, and HTTP clients fail on more
        chosen["trace_headers"] = {name: value.decode() for name, value in trace.items() if value.isascii()}
    if api == "messages":
        chosen["version_headers"] = {
            name.decode(): _ascii(head, name, MAX_VERSION_CHARACTERS) for name in _VERSIONS if head.get(name)
        }
    return RequestOptions(tenant=caller.tenant, **chosen)


def resolve_model(chat: Chat, options: RequestOptions, registry: Registry, head: Head) -> tuple[Chat, RequestOptions]:
    """Replace an alias or operating point by the model that it stands for, and set the point's cost weight unless the
    request has a header for it.

    Raises ModelNotFound for a model or recipe that does not exist for the caller. Names are checked here
    before anything else, so that no other error, price or cached answer reveals an excluded model.
    """
    if chat.model == AUTO and not options.recipe:  # the usual case; no alias has this name
        return chat, options
    model = registry.models.resolve(chat.model) or ResolvedModel(chat.model)
    check_model(model.model, registry, options.rule, sent=chat.model)
    if options.recipe not in ("", NO_RECIPE, model.model):
        check_recipe(options.recipe, registry, options.rule)
    if model.cost_weight is not None and COST_WEIGHT not in head:
        options = replace(options, cost_weight=model.cost_weight)
    return chat if model.model == chat.model else replace(chat, model=model.model), options


def with_rules(
    chat: Chat, options: RequestOptions, rules: Rules, head: Head, *, caller: Caller, model: str
) -> RequestOptions:
    """Add the rules of experts.yaml that match, and limit the request to local experts if one says so. `model` is the
    client's value."""
    client = head.get(b"user-agent", b"").decode("latin-1")
    routed = chat.model == AUTO and options.recipe in ("", NO_RECIPE)
    key, tenant = caller.key or "", caller.tenant or ""
    names = rules.matching(RequestFacts(chat, model, input_range, client, key, tenant, routed))
    rule = only_local(options.rule) if rules.only_local(names) else options.rule
    return replace(options, rules=names, rule=rule) if names else options


def _ascii(head: Head, name: bytes, longest: int, *, what: str = "") -> str:
    text = head[name].decode("latin-1")
    if len(text) > longest or not (text.isascii() and text.isprintable()):
        message = f"{name.decode()} must be {what}at most {longest} printable ASCII characters"
        raise InvalidRequest(message, param=name.decode())
    return text


def _number(head: Head, name: bytes, low: float, high: float) -> float:
    try:
        number = float(head[name])
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        text = name.decode()
        raise InvalidRequest(f"{text} must be a number from {low:g} to {high:g}", param=text)
    return number
