"""Shared immutable value types and the Protocols between packages.

A request passes through these types in order: `Chat` and `RequestOptions` (parsed request), `Prediction` (category
posterior), `Decision` (which expert), `Call` (request to that expert), `Reply` (its accepted response). `Router`,
`Encoder`, `Expert` and `Reply` are the interfaces that other packages implement. This module imports `coe.errors`
and `coe.usage` only.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar, dataclass_transform, get_args

import numpy as np
from numpy.typing import NDArray

from coe.errors import Cause
from coe.usage import RecipeLog, SentCall, Usage

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """Make a frozen dataclass of which every request makes instances.

    The type checker keeps it frozen. A dataclass that is frozen at run time takes ten times as long to make.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


PassThroughApi = Literal[
    "rerank", "score", "tokenize", "moderations", "audio/speech", "audio/transcriptions", "audio/translations",
    "images/generations", "images/edits", "images/variations",
]  # fmt: skip
"""APIs whose requests and answers pass through unread; named by their paths."""
PASS_THROUGH_APIS: frozenset[PassThroughApi] = frozenset(get_args(PassThroughApi))
Api = Literal["chat", "completions", "responses", "messages", "embeddings", PassThroughApi]
"""APIs of clients and experts: OpenAI's and Anthropic's for text, and those that pass through."""
PATHS: Mapping[Api, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
    **{api: f"/v1/{api}" for api in PASS_THROUGH_APIS},
    "tokenize": "/tokenize",
}
"""The gateway's path of each API."""
TRANSLATED_APIS: frozenset[Api] = frozenset(("responses", "messages"))
"""APIs that are translated to and from chat for servers that do not speak them."""
TEXT_APIS: frozenset[Api] = frozenset(("chat", "completions", "responses", "messages"))
"""APIs whose answers are texts of a language model."""
Capability = Literal["tools", "json_schema", "images", "audio", "files", "json_object", "n", "logprobs", "echo"]
OPTIONAL_CAPABILITIES: frozenset[Capability] = frozenset(("files", "json_object", "n", "logprobs", "echo"))
"""Capabilities that restrict routing only if an expert declares them. Other servers usually ignore the field."""
Reason = Literal["routed", "explored", "uncertain", "sticky", "pinned", "rule", "spilled", "fallback", "cached"]
RetrievalMode = Literal["auto", "on", "off"]
"""Condition for retrieving passages for a request: that the gate expects a gain, always, or never."""
Purpose = Literal["score", "chat"]
"""CoE command that sent a request. Reports and learning ignore the records of such requests."""
Scope = Literal["chat", "route", "feedback", "admin"]
"""Permission of an API key."""

NO_RECIPE = "off"
"""Value of `RequestOptions.recipe` for single experts only."""
GENERAL = "general"
"""Name of the fallback category, for uncertain requests. Every registry must declare it."""
FAST_UNCERTAIN = "fast_uncertain"
"""`Prediction.stage` of an uncertain fast prediction that no encoder pass has refined."""
ENGLISH, UNDETERMINED = "en", "und"
"""Values of `Prediction.language`: English, and another language that is not identified (ISO 639)."""

# ----------------------------------------------------------------------------------------------- request


@frozen
class Message:
    """Role and text of one message; text parts are joined by newlines.

    `call_id` is the id of the tool call whose result a message of role `tool` is; empty if unknown.
    """

    role: str
    text: str
    call_id: str = ""


@frozen
class Chat:
    """The part of a request body that routing reads. The raw body is kept unchanged as well.

    `api` is the client's API. `needs` are the capabilities that the expert must have, the optional ones if
    any expert has them. `characters` is the length of all
    messages, a cheap bound on their tokens. `fields` is the parsed body that is forwarded to the expert.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    needs: frozenset[Capability]
    characters: int
    fields: Mapping[str, Any] = field(repr=False)
    api: Api = "chat"

    def without_content(self) -> Chat:
        """Return a copy without texts and fields, which frees their memory once the expert has the request."""
        messages = tuple([Message(message.role, "") for message in self.messages])
        return replace(self, messages=messages, fields={})


@dataclass(frozen=True, slots=True)
class ExpertRule:
    """Experts that may receive a request. All others are never called for it, in no step and by no recipe.

    `experts` are the names and patterns that the API key `key` permits; None permits all. With `only_local`, only
    experts that run locally (`ExpertSpec.is_local`) may receive it.
    """

    key: str = ""
    experts: tuple[str, ...] | None = None
    only_local: bool = False


@frozen
class RequestOptions:
    """Options of a request from its headers and API key.

    `session` is the client's session id, `cost_weight` the weight of cost in routing (0 best quality, 1 cheapest), and
    `timeout` the limit for the whole request in seconds. `trace_headers` (W3C trace context) and `version_headers`
    (version and betas of the client's API) are forwarded to the expert. `explain` requests the explanation of the
    decision in the response. `tenant` is the tenant of the API key. `purpose` is None for a user's request. `recipe` is
    the name of the recipe to use, NO_RECIPE for single experts only, or empty if the plan decides. `cache` is False if
    the answer cache must not be used. `rule` limits the experts; None if all may receive the request. `rules` are the
    names of the rules in experts.yaml of which one applies (`coe.routing.rules`).
    """

    session: str | None = None
    cost_weight: float = 0.0
    timeout: float = 600.0
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    retrieval: RetrievalMode = "auto"
    explain: bool = False
    tenant: str | None = None
    version_headers: Mapping[str, str] = field(default_factory=dict)
    purpose: Purpose | None = None
    recipe: str = ""
    cache: bool = True
    rule: ExpertRule | None = None
    rules: tuple[str, ...] = ()

    @property
    def forwarded_headers(self) -> Mapping[str, str]:
        """Headers that are forwarded to the expert's server."""
        return {**self.trace_headers, **self.version_headers} if self.version_headers else self.trace_headers


# ----------------------------------------------------------------------------------------------- classification


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training text or corrected prompt near a given text: its category, the cosine similarity, and the text's digest
    (`routers.prompt_digest`), which is empty if the router does not store digests."""

    category: str
    similarity: float
    digest: str = ""


@frozen
class Prediction:
    """Category posterior of one text.

    `probabilities` is the calibrated posterior over the router's `categories`, float32 of shape (n_categories,). It
    sums to 1, and is conditional on the text being in-distribution. `in_distribution` is the probability of that (0 to
    1). `stage` names the part of the router that decided, for the routing log. `rule` is the name of the
    rule in experts.yaml that applies, empty without one. `router_probabilities` is the posterior before the rule, if it
    changed it. `language` is the ISO 639 code of the text's language, UNDETERMINED if
    it is not English and not identified, or empty if the router does not distinguish languages. `features` (width,)
    are those of the router's encoder, None unless they were requested, and `residual` (n_experts,) is what the plan
    expects of the text beyond its categories, None if it is not known. `correction` is the corrected prompt nearest to
    the text, if it counted.
    """

    probabilities: NDArray[np.float32] = field(repr=False)
    stage: str
    in_distribution: float = 1.0
    router_probabilities: NDArray[np.float32] | None = field(default=None, repr=False)
    language: str = ""
    rule: str = ""
    features: NDArray[np.float32] | None = field(default=None, repr=False)
    residual: NDArray[np.float32] | None = field(default=None, repr=False)
    correction: Neighbour | None = None
    best: int = field(init=False)
    """Index of the most likely category."""
    confidence: float = field(init=False)
    """Probability that the text is in-distribution and belongs to the most likely category."""

    def __post_init__(self) -> None:
        values: list[float] = self.probabilities.tolist()  # each of NumPy's calls takes longer than all of these
        largest = max(values)
        object.__setattr__(self, "best", values.index(largest))
        object.__setattr__(self, "confidence", largest * self.in_distribution)


class Encoder(Protocol):
    """A sentence encoder: texts to float32 vectors.

    `encode` returns unit vectors, shape (n_texts, dimensions). `features` returns wider rows for a router: the unit
    vector first, then the encoder's other outputs.
    """

    dimensions: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class Router(Protocol):
    """A category router: text to a posterior over `categories`. Implementations must be thread-safe.

    `predict_fast` takes about 0.1 ms, so it may run on the event loop. Its prediction of an uncertain text has the
    stage FAST_UNCERTAIN; there the slower `predict` (milliseconds per text, uses the sentence encoder) is more
    accurate. Otherwise `predict` returns the same one, unless `encode` requests an encoder pass for every text, and its
    features. Given `embeddings`, the `features` of the router's own encoder, `predict` uses them for every text and
    does not run the encoder. `neighbours` returns the nearest training texts, nearest first, as far as the router
    stores any; it takes as long as `predict`.
    """

    categories: tuple[str, ...]
    version: str

    def predict_fast(self, text: str) -> Prediction: ...

    def predict(
        self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None, encode: bool = False
    ) -> list[Prediction]: ...

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]: ...


# ----------------------------------------------------------------------------------------------- decision and response


@frozen
class Decision:
    """The selected expert and the reason.

    `candidates` is the fallback order and starts with the selected expert. `category` and `confidence` come from the
    prediction. `propensity` is the probability with which the policy selects the first candidate (1.0 without
    exploration), `propensities` that of each candidate (empty if no other could have been chosen). `utility` is the
    expected quality minus price of each candidate, `price` the amount subtracted. Both are empty for a pinned expert;
    `price` is also empty if every price is 0.

    After a fallback, `fallback_from` is the first choice and `cause` the reason why it did not answer. A failed request
    has a `cause` too. Otherwise both are empty. `rule` is that of the prediction.
    """

    expert: str
    category: str
    confidence: float
    reason: Reason
    candidates: tuple[str, ...]
    propensity: float = 1.0
    propensities: tuple[float, ...] = ()
    utility: tuple[float, ...] = ()
    price: tuple[float, ...] = ()
    fallback_from: str = ""
    cause: Cause | Literal[""] = ""
    rule: str = ""


AnswerMemory = Callable[[int], None]
"""Holds so many more bytes of the caller's answers, fewer if the number is negative. Raises AnswerMemoryFull. May be
called in any thread."""


@frozen
class Call:
    """One request to one expert: the client's parsed body and its timeouts in seconds.

    A response that is not streamed is a single chunk, so `first_token_timeout` limits all of it. `headers` are sent to
    the expert's server (`RequestOptions.forwarded_headers`). `conversation` identifies the conversation, so that the
    replica with its prefix cache is selected again. `exclude` holds server addresses that refused a connection for the
    same request. `caller` is the API key if there are several. A `forced` call takes an expert that rests: no other
    is left.

    If experts share a device, the call waits until `wake_deadline` (event loop clock) for a sleeping expert, unless its
    `stand_in` (an expert that is awake and may answer instead) is up.

    `optional` names fields that an expert may leave out, or send under another name, if its server rejects them:
    `max_tokens` that CoE itself has set, for example.

    A recipe weighs answers by the category `posterior`, shape (n_categories,); None for a uniform one. It returns its
    best answer shortly before `deadline` (event loop clock), and writes its calls to `recipe_log`.

    An expert adds to `dropped` the types of items and the names of fields that it left out.

    An expert adds to `sent` each request whose bytes it writes to a server, and removes one that the server refuses:
    what remains may be billed.

    Whatever holds more of the answer than its next part reports it to `memory` (a `HeldAnswer`); None for no bound.
    """

    fields: Mapping[str, Any]
    stream: bool
    first_token_timeout: float
    stream_idle_timeout: float
    api: Api = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    conversation: bytes = b""
    caller: str = ""
    forced: bool = False
    stand_in: str = ""
    wake_deadline: float = 0.0
    exclude: frozenset[str] = frozenset()
    posterior: NDArray[np.float32] | None = field(default=None, repr=False)
    deadline: float = math.inf
    recipe_log: RecipeLog | None = field(default=None, repr=False)
    optional: frozenset[str] = frozenset()
    dropped: set[str] | None = field(default=None, repr=False)
    sent: list[SentCall] = field(default_factory=list, repr=False)
    memory: AnswerMemory | None = field(default=None, repr=False)


class Chunks(Protocol):
    """The chunks of a reply, in order. Any asynchronous generator is one."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def aclose(self) -> None: ...


class Reply(Protocol):
    """A response that an expert has begun: its first chunk has arrived. Iterate `chunks` to the end or call `aclose`.

    A stream yields complete server-sent events; any other response yields its JSON in one chunk. Iteration raises an
    ExpertError if the expert breaks off.
    """

    media_type: str
    usage: Usage

    def chunks(self) -> Chunks: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Health:
    """Health of an expert, from its recent requests.

    `up` is False while its circuit breaker is open; `cause` is the reason, empty if unknown. `load` is requests in
    flight over capacity: from 1 on the expert is overloaded. `ready_replicas` counts the servers that accept requests.
    """

    up: bool = True
    load: float = 0.0
    ready_replicas: int = 1
    cause: Cause | Literal[""] = ""


class Expert(Protocol):
    """A model that answers requests. `stream` returns once the first chunk has arrived, or raises an ExpertError."""

    name: str

    @property
    def health(self) -> Health: ...

    async def stream(self, call: Call) -> Reply: ...
