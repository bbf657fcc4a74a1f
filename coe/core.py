"""The frozen values that travel along both lines, and the Protocols they cross. Imports nothing of ours but errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Api = Literal["chat", "completions", "responses", "messages", "embeddings"]
"""What clients and experts speak: four of OpenAI's (Chat Completions first) and Anthropic's Messages."""
Capability = Literal["tools", "json_schema", "images", "audio"]
Reason = Literal["routed", "explored", "uncertain", "sticky", "pinned", "spilled", "fallback"]
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


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks for beside its body: the `session` it belongs to, None without one, how thrifty its routing
    should be (0 to 1), its `timeout` in seconds, and the trace context that goes on to the expert."""

    session: str | None = None
    thrift: float = 0.0
    timeout: float = 600.0
    trace: Mapping[str, str] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------- classification


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a router thinks of one text.

    `probabilities` is a calibrated posterior over the router's `categories`, float32 of shape (n_categories,), summing
    to 1, given that the text is of a kind the router knows. `familiarity` is the probability, 0 to 1, that it is.
    `stage` names the part of the router that decided, for the log.
    """

    probabilities: NDArray[np.float32] = field(repr=False)
    stage: str
    familiarity: float = 1.0

    @property
    def best(self) -> int:
        """Index of the likeliest category."""
        return int(self.probabilities.argmax())

    @property
    def confidence(self) -> float:
        """Probability that the likeliest category is right: the text is of a known kind, and of this one."""
        return float(self.probabilities.max()) * self.familiarity


class Encoder(Protocol):
    """Texts to vectors. Rows are unit length, float32, shape (n_texts, dimensions)."""

    dimensions: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class Router(Protocol):
    """A category router: text to a posterior over `categories`. Thread-safe; every implementation passes one suite.

    `peek` answers at once (about a tenth of a millisecond, so on the event loop) or returns None where a surer, slower
    look is worth it; `predict` always answers and may take milliseconds per text. Where `peek` answers, `predict`
    gives the same. A `hurried` peek answers in every case, in place of None with stage `hurried`.
    """

    categories: tuple[str, ...]
    version: str

    def peek(self, text: str, *, hurried: bool = False) -> Prediction | None: ...

    def predict(self, texts: Sequence[str]) -> list[Prediction]: ...


# ----------------------------------------------------------------------------------------------- decision and answer


@dataclass(frozen=True, slots=True)
class Decision:
    """Which expert answers and why. `candidates` is the order of fall-back, the chosen expert first.

    `category` and `confidence` describe the conversation, `propensity` is the probability with which the policy chose
    the first candidate for it (1.0 where nothing is random). `worth` is the expected quality less price of each
    candidate, in their order; empty for a pin, which nothing was weighed for.
    """

    expert: str
    category: str
    confidence: float
    reason: Reason
    candidates: tuple[str, ...]
    propensity: float = 1.0
    worth: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one expert: the body as the client sent it (parsed) and how long to wait, in seconds.

    `headers` go to the expert's server beside its own (trace context); `conversation` is the same for every turn of a
    conversation, so that a replica with its prefix in cache can be found again.
    """

    fields: Mapping[str, Any]
    stream: bool
    first_piece_timeout: float
    piece_timeout: float
    api: Api = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    conversation: bytes = b""


class Usage:
    """Tokens of one answer, filled in while it streams past; None where the expert did not say."""

    __slots__ = ("input_tokens", "output_tokens")

    def __init__(self) -> None:
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None


class Reply(Protocol):
    """An expert's accepted answer: its first piece has arrived. Iterate `pieces` to the end or `aclose()` it.

    Iteration raises an ExpertError when the expert breaks off. Pieces are whole: a stream yields complete server-sent
    events, a plain answer yields its JSON once.
    """

    media_type: str
    usage: Usage

    def pieces(self) -> AsyncGenerator[bytes, None]: ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """How an expert stands by its recent outcomes.

    `up` is False while its breaker is open; `load` is the work it has over the work it can do at once: from 1 on the
    expert is overloaded. `ready` counts its servers that may be asked now; within `p95` seconds 95 % of its latest
    streams began, None where too few are known.
    """

    up: bool = True
    load: float = 0.0
    ready: int = 1
    p95: float | None = None


class Expert(Protocol):
    """Something that answers chats. `stream` returns once the first piece is there, or raises an ExpertError."""

    name: str

    @property
    def standing(self) -> Standing: ...

    async def stream(self, call: Call) -> Reply: ...

    async def aclose(self) -> None: ...


# ----------------------------------------------------------------------------------------------- the routing log


@dataclass(frozen=True, slots=True)
class RoutingRecord:
    """One request's line in the routing log, schema version 1. Times are Unix seconds, durations milliseconds.

    Complete enough to re-decide the request offline: the posterior (by category name, in `probabilities`, to five
    digits), the text's `familiarity`, the `thrift` asked for, the order of `candidates` and the `worth` of each
    (expected quality less price, to four digits, -inf for one that may not serve the category; empty for a pin), the
    chosen expert, the propensity of the first candidate, the `exploration` that served (its rate and loss, None where
    it was off), and the versions of router, configuration and `assignment` (the digest of the plan or of the declared
    mapping, over the router's categories). `digest` is the SHA-256 of the routed text; the text itself (`prompt`) and
    its embedding (`embedding`, float16 bytes) are kept only where experts.yaml says so. `tenant` and `key` name whose
    request it was, `cost` is in US dollars by the expert's declared prices.
    `outcome` is `ok`, `aborted` (the client left), or the `code` of the error.
    """

    request_id: str
    time: float
    category: str
    confidence: float
    expert: str
    reason: str
    propensity: float
    candidates: tuple[str, ...]
    probabilities: Mapping[str, float]
    stage: str
    router: str
    config: str
    digest: str
    outcome: str
    attempts: int
    stream: bool
    routing_ms: float
    first_piece_ms: float | None
    total_ms: float
    familiarity: float = 1.0
    thrift: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    session: str | None = None
    api: str = "chat"
    tenant: str | None = None
    key: str | None = None
    cost: float | None = None
    prompt: str | None = None
    embedding: bytes | None = field(default=None, repr=False)
    assignment: str = ""
    worth: tuple[float, ...] = ()
    exploration: tuple[float, float] | None = None
    schema: int = 1


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which records to read, oldest first. Empty fields match everything; `since` is in Unix seconds.

    `after` is the cursor of the last record already seen, as returned by `RoutingLog.read`.
    """

    after: str = ""
    since: float = 0.0
    category: str = ""
    expert: str = ""
    outcome: str = ""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some records in the order they were appended and the cursor after the last one looked at."""

    records: tuple[RoutingRecord, ...]
    cursor: str


class RoutingLog(Protocol):
    """Where records live. Appending the same request_id twice keeps one. Raises LogError when the store cannot be used.

    `tail` returns the newest `limit` matching records, oldest of them first; `read` walks forward from a cursor and
    returns an empty page with the same cursor when nothing is new; `find` returns one record, None where it is not
    there or not there any more.
    """

    async def append(self, records: Sequence[RoutingRecord]) -> None: ...

    async def read(self, query: LogQuery) -> LogPage: ...

    async def tail(self, query: LogQuery) -> LogPage: ...

    async def find(self, request_id: str) -> RoutingRecord | None: ...

    async def aclose(self) -> None: ...
