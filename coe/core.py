"""The frozen values that travel along both lines, and the Protocols they cross. Imports nothing of ours but errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from coe.errors import Cause

Api = Literal["chat", "completions", "responses", "messages", "embeddings"]
"""What clients and experts speak: four of OpenAI's (Chat Completions first) and Anthropic's Messages."""
Capability = Literal["tools", "json_schema", "images", "audio"]
Reason = Literal["routed", "explored", "uncertain", "sticky", "pinned", "spilled", "fallback"]
Consent = Literal["auto", "on", "off"]
"""Whether documents may be consulted: where it pays, in any case, or never."""
Purpose = Literal["score", "chat"]
"""The CoE command that sends a request, which is not a user's: its record is left out of reports and of learning."""
Scope = Literal["chat", "route", "feedback", "admin"]
"""What an API key may do."""

GENERAL = "general"
"""The category of robust last resort; every registry declares it."""

# ----------------------------------------------------------------------------------------------- a conversation


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, reduced to what routing reads: its role and its text (text parts joined by newlines)."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """The routing view of a request body. The body itself stays untouched beside it.

    `api` is what the client speaks; `needs` holds the capabilities an expert must have; `characters` counts the text of
    all turns (a cheap bound on tokens); `fields` is the parsed body, passed through to the expert.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool
    needs: frozenset[Capability]
    characters: int
    fields: Mapping[str, Any] = field(repr=False)
    api: Api = "chat"

    def without_content(self) -> Chat:
        """The same chat without its texts and fields, for what is still reported once an expert has it."""
        messages = tuple([Message(message.role, "") for message in self.messages])
        return replace(self, messages=messages, fields={})


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request asks for beside its body: the `session` it belongs to, None without one, how thrifty its routing
    should be (0 to 1), its `timeout` in seconds, the trace context that goes on to the expert, and whether documents
    may be consulted for it. `explain`: it wants to know how its answer came about, and may pay for that. `tenant` is
    that of its API key. `versions` are headers that say which version of its API is meant, and which of its betas.
    `purpose` is None for a user's request."""

    session: str | None = None
    cost_weight: float = 0.0
    timeout: float = 600.0
    trace: Mapping[str, str] = field(default_factory=dict)
    retrieval: Consent = "auto"
    explain: bool = False
    tenant: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    purpose: Purpose | None = None

    @property
    def passed(self) -> Mapping[str, str]:
        """The headers that go on to the expert's server."""
        return {**self.trace, **self.versions} if self.versions else self.trace


# ----------------------------------------------------------------------------------------------- classification


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a router thinks of one text.

    `probabilities` is a calibrated posterior over the router's `categories`, float32 of shape (n_categories,), summing
    to 1, given that the text is of a kind the router knows. `in_distribution` is the probability, 0 to 1, that it is.
    `stage` names the part of the router that decided, for the log. Where a tenant's overlay (`coe/routing/overlay.py`)
    changed the posterior, `overlay` is the version of the overlays and `plain` the router's own posterior.
    """

    probabilities: NDArray[np.float32] = field(repr=False)
    stage: str
    in_distribution: float = 1.0
    overlay: str = ""
    plain: NDArray[np.float32] | None = field(default=None, repr=False)

    @property
    def best(self) -> int:
        """Index of the likeliest category."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """Probability that the likeliest category is right: the text is of a known kind, and of this one."""
        return float(self.probabilities[self.probabilities.argmax()]) * self.in_distribution


class Encoder(Protocol):
    """Texts to vectors, float32: `encode` gives rows of unit length, shape (n_texts, dimensions), `read` wider ones
    that begin with these and go on with what else a router takes from its encoder."""

    dimensions: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def read(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


LOAD_SHED = "load_shed"
"""The stage of an unsure quick answer."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A text that the router was trained on: its category, the cosine to it, and the digest by which somebody who has
    the texts finds it (`routers.digest_of`), empty where the router does not know it."""

    category: str
    similarity: float
    digest: str = ""


class Router(Protocol):
    """A category router: text to a posterior over `categories`. Thread-safe; every implementation passes one suite.

    `predict_fast` answers at once (about a tenth of a millisecond, so on the event loop) or returns None where a surer,
    slower look is worth it; `predict` always answers and may take milliseconds per text. Where `predict_fast` answers,
    `predict` gives the same. A `force` peek answers in every case, in place of None with stage `force`. Whoever has the
    texts' `embeddings` by the router's own encoder gets the surest answer for each of them, and the encoder is not
    asked: a fraction of a millisecond more than a peek. `neighbours` are the training texts nearest to one, the nearest
    first, as far as the router keeps any; it takes as long as `predict`."""

    categories: tuple[str, ...]
    version: str

    def predict_fast(self, text: str, *, force: bool = False) -> Prediction | None: ...

    def predict(self, texts: Sequence[str], *, embeddings: NDArray[np.float32] | None = None) -> list[Prediction]: ...

    def neighbours(self, text: str, *, limit: int) -> list[Neighbour]: ...


# ----------------------------------------------------------------------------------------------- decision and answer


@dataclass(frozen=True, slots=True)
class Decision:
    """Which expert answers and why. `candidates` is the order of fall-back, the chosen expert first.

    `category` and `confidence` describe the conversation, `propensity` is the probability with which the policy chose
    the first candidate for it (1.0 where nothing is random). `utility` is the expected quality less price of each
    candidate, in their order, and `price` what was taken off for each; both are empty for a pin, which nothing was
    weighed for, and `price` also where everything is free.

    `fallback_from` names the first choice where another expert answers in its place, and `cause` says in one word of
    `coe.errors.Cause` why the first choice did not; both are empty otherwise. A request that fails has a cause too.
    """

    expert: str
    category: str
    confidence: float
    reason: Reason
    candidates: tuple[str, ...]
    propensity: float = 1.0
    utility: tuple[float, ...] = ()
    price: tuple[float, ...] = ()
    fallback_from: str = ""
    cause: Cause | Literal[""] = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one expert: the body as the client sent it (parsed) and how long to wait, in seconds. The first
    piece of what is not streamed is all of it.

    `headers` are sent to the expert's server beside its own (`RequestOptions.passed`). `conversation` is the same for
    every turn of a conversation, so that the replica with its prefix in cache can be selected again. Where experts
    share a device, a call waits for an expert that is not loaded until `hold_until` (event loop clock), unless the
    expert `stand_in` can answer in its place. `category` is the request's category. `exclude` holds the addresses of
    servers that accepted no connection, or were full, for the same request. `caller` is the tenant, empty without API
    keys."""

    fields: Mapping[str, Any]
    stream: bool
    first_token_timeout: float
    stream_idle_timeout: float
    api: Api = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    conversation: bytes = b""
    category: str = ""
    stand_in: str = ""
    hold_until: float = 0.0
    exclude: frozenset[str] = frozenset()
    caller: str = ""


class Usage:
    """Tokens of one answer, filled in while it streams past; None where the expert did not say. `events` counts those
    of a stream, each of which holds a token or more."""

    __slots__ = ("events", "input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.events = 0


class Reply(Protocol):
    """An expert's accepted answer: its first piece has arrived. Iterate `chunks` to the end or `aclose()` it.

    Iteration raises an ExpertError when the expert breaks off. Pieces are whole: a stream yields complete server-sent
    events, a plain answer yields its JSON once.
    """

    media_type: str
    usage: Usage

    def chunks(self) -> AsyncGenerator[bytes, None]: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Health:
    """How an expert stands by its recent outcomes.

    `up` is False while its breaker is open; `load` is the work it has over the work it can do at once: from 1 on the
    expert is overloaded. `ready` counts its servers that may be asked now; within `p95` seconds 95 % of its latest
    streams began, None where too few are known. `cause` says why it is not `up`, empty where that is not known.
    """

    up: bool = True
    load: float = 0.0
    ready: int = 1
    p95: float | None = None
    cause: Cause | Literal[""] = ""


class Expert(Protocol):
    """Something that answers chats. `stream` returns once the first piece is there, or raises an ExpertError."""

    name: str

    @property
    def health(self) -> Health: ...

    async def stream(self, call: Call) -> Reply: ...

    async def aclose(self) -> None: ...
