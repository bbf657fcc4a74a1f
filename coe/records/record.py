"""One request's record in the routing log, and the protocol of the log.

RoutingRecord is the only list of fields: pydantic derives every stored and documented form from its annotations and
the texts below them (`coe.records.record`).

Feedback on answers: the event, and the protocol of the log that keeps it until learning reads it.

The dedup key of an event names the request, kind and API key: a log keeps one event per dedup key.

The stored form of records and feedback: lines of JSON, which pydantic writes and reads.

Every log, the spool and `coe log export` store them. Unknown keys are ignored and missing optional keys take their
defaults; a record of a newer schema is refused.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import orjson
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from pydantic_core import PydanticSerializationError

from coe.core import frozen
from coe.errors import DamagedEntry, InvalidRequest, StoreError, UnknownCursor
from coe.usage import MemberCall

CONFIG = ConfigDict(use_attribute_docstrings=True, hide_input_in_errors=True, strict=True)
"""Values of another type are errors, and errors do not repeat a value, which may be a prompt."""

Utility = Annotated[
    float,
    BeforeValidator(lambda value: -math.inf if value is None else value),
    WithJsonSchema({"type": ["number", "null"]}),
]
"""A number that may be -inf, for which JSON has null."""


@dataclass(frozen=True, slots=True)
class RecipeCall:
    """One call of a recipe to a member, in the record of its request."""

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG

    expert: str
    """Member that was called."""
    step: int
    """Number of the step, from 0."""
    outcome: str
    """`answered`, `unreadable`, `unverified`, `cancelled`, or the cause of the failure; of a judge `graded` or
    `ungraded`."""
    input_tokens: int | None = None
    """Input tokens, as the member counted them."""
    output_tokens: int | None = None
    """Output tokens, as the member counted them."""
    ms: float = 0.0
    """Milliseconds from the call to the end of the answer."""
    answer_class: int | None = None
    """Position in this list of the first call with the same final answer."""
    confidence: float | None = None
    """Probability that the answer is right, 0 to 1; of a judge, that of the graded one."""
    accepted: bool = False
    """True for the answer that was returned."""
    drafts: int = 0
    """Number of earlier answers in its request; 0 if it answered from the conversation alone."""
    cached_tokens: int | None = None
    """Input tokens that the member read from its prompt cache."""

    @classmethod
    def of(cls, call: MemberCall) -> RecipeCall:
        """Return the record of a call that has ended."""
        usage = call.usage
        return cls(
            call.expert,
            call.step,
            call.outcome,
            usage.input_tokens if usage else None,
            usage.output_tokens if usage else None,
            round(call.ms, 3),
            call.answer_class,
            call.confidence,
            call.accepted,
            call.drafts,
            usage.cached_tokens if usage else None,
        )


@frozen
class RoutingRecord:
    """One routed request's record, schema version 1. Times are Unix seconds, durations milliseconds.

    To add a field, add its type, a default and its meaning, and fill it in `record_of` of
    `gateway.observability.observers`. Never change a default, as stored records leave it out.
    """

    __pydantic_config__: ClassVar[ConfigDict] = CONFIG

    request_id: str
    """Identifier of the request, from `x-request-id`."""
    time: float
    """Arrival time in Unix seconds."""
    category: str
    """Category of the request; empty if it failed before classification."""
    confidence: float
    """Probability of the most likely category times `in_distribution`, 0 to 1."""
    expert: str
    """Expert or arm of a recipe that answered or failed last; empty without one."""
    reason: str
    """Reason for the choice: routed, uncertain, sticky, pinned, fallback, ..."""
    propensity: float
    """Probability with which the first candidate was chosen."""
    candidates: tuple[str, ...]
    """Experts in the order in which they were to be tried."""
    probabilities: Mapping[str, float]
    """Probability of each category, to five digits."""
    stage: str
    """Part of the router that classified the text."""
    router: str
    """Version of the router, as in `coe versions`."""
    config: str
    """Digest of experts.yaml."""
    digest: str
    """SHA-256 of the routed text."""
    outcome: str
    """`ok`, `aborted` (the client left) or an error code."""
    attempts: int
    """Number of calls to experts that were started."""
    stream: bool
    """True if the client requested a stream."""
    routing_ms: float
    """Milliseconds from arrival to the decision."""
    first_token_ms: float | None
    """Milliseconds from arrival to the first token; null if none came."""
    total_ms: float
    """Milliseconds from arrival to the end of the answer."""
    in_distribution: float = 1.0
    """Probability that the text is of a kind the router was trained on."""
    cost_weight: float = 0.0
    """Cost weight of the request: 0 best answer, 1 cheapest."""
    input_tokens: int | None = None
    """Input tokens, as the expert counted them."""
    output_tokens: int | None = None
    """Output tokens, as the expert counted them."""
    cached_tokens: int | None = None
    """Input tokens that the expert read from its prompt cache, a part of `input_tokens`."""
    session: str | None = None
    """Value of the client's `x-session-id` header."""
    api: str = "chat"
    """API of the request: chat, responses, messages, ..."""
    tenant: str | None = None
    """Tenant of the API key."""
    key: str | None = None
    """Name of the API key."""
    cost: float | None = None
    """US dollars by the expert's declared prices."""
    prompt: str | None = None
    """Routed text; stored only if `log.store_prompts` is set."""
    left_out: tuple[str, ...] = ()
    """Parts of the messages that were not routed; stored only with the routed text."""
    dropped: tuple[str, ...] = ()
    """Types of tools and items, and names of fields, that were left out (`x-coe-dropped`)."""
    assignment: str = ""
    """Digest of the assignment in effect over the router's categories."""
    utility: tuple[Utility, ...] = ()
    """Expected quality less price of each candidate, to four digits; null if it may not serve the category or was never
    measured."""
    price: tuple[Utility, ...] = ()
    """Price subtracted for each candidate, to four digits; empty if all are free."""
    propensities: tuple[float, ...] = ()
    """Probability with which each candidate could have been chosen; empty if no other could have been chosen."""
    router_probabilities: Mapping[str, float] | None = None
    """The router's own probabilities, before a rule."""
    retrieval: str = "none"
    """Result of retrieval: none, off, skipped, empty, failed or used."""
    gate: float | None = None
    """Probability that passages improve this expert's answer."""
    gain: float | None = None
    """Quality expected of the passages."""
    passages: tuple[str, ...] = ()
    """Identifiers of the passages given to the expert."""
    passage_tokens: int = 0
    """Approximate number of tokens of these passages."""
    retrieval_ms: float = 0.0
    """Milliseconds that retrieval took."""
    needs: tuple[str, ...] | None = None
    """Capabilities that the request needs; null if unknown."""
    purpose: str = ""
    """CoE command that sent the request: score or chat; empty for a user's."""
    fallback_from: str = ""
    """First choice that did not answer, if another expert answered; else empty."""
    cause: str = ""
    """Why the first choice did not answer or the request failed; empty otherwise."""
    recipe: str = ""
    """Recipe that was called; empty if none was."""
    recipe_stop: str = ""
    """Why the recipe stopped: accepted, last_step, stream_hold, ...; empty without one."""
    steps: tuple[RecipeCall, ...] = ()
    """Calls of the recipe to its members."""
    cache: str = ""
    """`hit`: the answer is from the cache, at no cost; `miss`; empty if the cache was not used."""
    model: str = ""
    """Value of `model` in the request, at most 256 characters."""
    resolved_model: str = ""
    """Model that `model` stands for: `auto`, or the name of an expert or recipe."""
    language: str = ""
    """ISO 639 code of the request's language: `en`, `de`, ...; `und` for another one that was not identified."""
    only_local: bool = False
    """True if only local experts may have received the request; its text is never stored."""
    excluded: tuple[str, ...] = ()
    """Experts that the list of the API key or `only_local` excluded."""
    limited: bool = False
    """True if the API key has a list of experts, or key, rule or header limits it to local experts."""
    plan: str = ""
    """Version of the plan in use; empty for the declared assignment."""
    unpriced: int = 0
    """Number of calls that reached an expert and whose tokens no server counted, as they failed, timed out or were
    abandoned. They are not part of `cost`; a key's limits charge their estimate."""
    rule: str = ""
    """Rule of experts.yaml that applied; empty if none did."""
    correction: str = ""
    """Digest of the corrected prompt near which the request is, as in `coe corrections`; empty if none counted."""
    schema: Annotated[int, Field(le=1)] = 1
    """Version of this list of fields."""


COLUMNS = ("request_id", "time", "category", "expert", "reason", "outcome", "session", "tenant")
"""Fields by which a LogQuery filters; the SQLite log has a column for each."""
MAX_PAGE_RECORDS = 10_000
"""Largest number of records in one page, even if the query requests more."""
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class LogQuery:
    """A selection of records. Empty fields match everything; `since` and `until` are in Unix seconds, both inclusive.

    `after` is the cursor of the last record read, as returned by `RoutingLog.read`; `before` that of the oldest one, as
    returned by `RoutingLog.back`. `request_id` is a prefix. A record that was appended more than an hour after its time
    may be missed by `until`.
    """

    after: str = ""
    before: str = ""
    since: float = 0.0
    until: float = math.inf
    category: str = ""
    expert: str = ""
    outcome: str = ""
    reason: str = ""
    session: str = ""
    tenant: str = ""
    request_id: str = ""
    limit: int = 100

    def exact(self) -> dict[str, str]:
        """The fields that a record must have exactly, with their values."""
        return {name: value for name in COLUMNS[2:] if (value := getattr(self, name))}

    def matches(self, record: RoutingRecord) -> bool:
        """True if the record matches; the log applies cursors and limit."""
        return (
            self.since <= record.time <= self.until
            and record.request_id.startswith(self.request_id)
            and all(getattr(record, name) == value for name, value in self.exact().items())
        )


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some records in the order they were appended (`back`: newest first), the cursor after the last entry read, and
    the number of damaged entries that were skipped. `end` of a page of `back` is the cursor from which `read` returns
    what is appended later."""

    records: tuple[RoutingRecord, ...]
    cursor: str
    damaged: int = 0
    end: str = ""


def page_size(limit: int) -> int:
    """The number of entries in a page of that limit: between 0 and MAX_PAGE_RECORDS."""
    return max(0, min(limit, MAX_PAGE_RECORDS))


def parse_cursor(cursor: str, *, place: str) -> int:
    """A numeric cursor, 0 for an empty one. Raises UnknownCursor for any other text; `place` names the log."""
    if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise UnknownCursor(f"{place}: {cursor!r} is not a cursor of this log; start again without one")
    return int(cursor or 0)


def retention_start(days: float | None) -> float:
    """The Unix time before which entries are deleted; 0 if `days` is None."""
    return 0.0 if days is None else max(0.0, time.time() - days * DAY)


class RoutingLog(Protocol):
    """Stores records. Appending the same request_id twice keeps one. Raises StoreError when the store cannot be used.

    `read` goes forward from a cursor, and
    returns an empty page with the same cursor when nothing is new. `back` goes backward from a cursor, newest first,
    and returns an empty cursor when nothing older is left; it scans a bounded number of entries a call, and may return
    few or no records with a cursor to continue from. `find` returns one record, None if it does not exist or was
    deleted.
    """

    async def append(self, records: Sequence[RoutingRecord]) -> None: ...

    async def read(self, query: LogQuery) -> LogPage: ...

    async def back(self, query: LogQuery) -> LogPage: ...

    async def find(self, request_id: str) -> RoutingRecord | None: ...

    async def aclose(self) -> None: ...


FeedbackKind = Literal["score", "thumb", "preferred", "category", "regenerated", "abandoned"]
FEEDBACK_KINDS: tuple[FeedbackKind, ...] = get_args(FeedbackKind)
"""The most reliable kind of rating first; of several on one request the first kind counts."""
MAX_NAME_CHARACTERS = 128
"""Characters of an id or a name in feedback."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One event about one request. The same `event_id` is the same event, however often it arrives.

    `value` depends on `kind`: a number from 0 to 1 (score), 1 up or -1 down (thumb), the name of the expert that should
    have answered (preferred), the category that the request belongs to (category; empty if withdrawn), None for the
    implicit signals regenerated and abandoned. `time` is in Unix seconds; `tenant` and `key` name the sender. Raises
    InvalidRequest for any other value.
    """

    event_id: str
    request_id: str
    time: float
    kind: FeedbackKind
    value: float | str | None = None
    tenant: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in FEEDBACK_KINDS:
            raise InvalidRequest(f"kind: {self.kind!r} is not one of {', '.join(FEEDBACK_KINDS)}", param="kind")
        for name in ("event_id", "request_id"):
            if not 0 < len(getattr(self, name)) <= MAX_NAME_CHARACTERS:
                raise InvalidRequest(f"{name}: must have 1 to {MAX_NAME_CHARACTERS} characters", param=name)
        if not math.isfinite(self.time):
            raise InvalidRequest(f"time: {self.time} is not a finite number", param="time")
        rule, fits = _VALUES[self.kind]
        if not fits(self.value):
            raise InvalidRequest(f"value: {self.value!r} does not fit {self.kind}, which needs {rule}", param="value")

    @property
    def dedup_key(self) -> bytes:
        """Digest of request, kind and API key, which the event shares with those that it replaces."""
        return dedup_keys(self.request_id, (self.key,), (self.kind,))[0]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARACTERS


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_VALUES: Mapping[FeedbackKind, tuple[str, Callable[[object], bool]]] = {
    "score": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),  # type: ignore[operator]
    "thumb": ("1 or -1", lambda value: _is_number(value) and value in (1, -1)),
    "preferred": ("the name of an expert", _is_name),
    "category": ("the name of a category, or an empty text", lambda value: value == "" or _is_name(value)),
    "regenerated": ("no value", lambda value: value is None),
    "abandoned": ("no value", lambda value: value is None),
}


@dataclass(frozen=True, slots=True)
class Pending:
    """An event on its way to the log.

    `checked`: the request is known and the event has its tenant. An unchecked event is compared with the record once
    the log can be read; with `is_admin` it may be about any tenant's request.
    """

    event: Feedback
    checked: bool = True
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class FeedbackPage:
    """Some events in storage order, the cursor after the last of them, and the number of damaged entries that were
    skipped."""

    events: tuple[Feedback, ...]
    cursor: str
    damaged: int = 0


class FeedbackLog(Protocol):
    """Keeps feedback for learning, as long as the routing log keeps records. Methods raise StoreError.

    There is one event per request, kind and API key: the latest by `time`, then by `event_id`. An event that is stored
    already (same `event_id`), or that is older than the stored one, changes nothing. So neither repetition nor the
    order of arrival matters, and a client that changes its mind does not fill the log. A replacement moves to the end:
    a reader that continues from a cursor gets it.

    `read` returns at most `limit` events after the cursor `after`, oldest first, and an empty page with the same cursor
    when nothing is new. `for_request` returns the events of one request from the API keys of those names (None: no
    key), oldest first by `time`.
    """

    async def append(self, events: Sequence[Feedback]) -> None: ...

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage: ...

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]: ...

    async def aclose(self) -> None: ...


def dedup_keys(request_id: str, keys: Iterable[str | None], kinds: Iterable[str] = FEEDBACK_KINDS) -> list[bytes]:
    """The dedup keys of events of these kinds about one request, if they come from those API keys: 16 bytes each."""
    names = (orjson.dumps((request_id, kind, key)) for key in keys for kind in kinds)
    return [hashlib.blake2b(name, digest_size=16).digest() for name in names]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """Writes and reads values of one type as lines of JSON; `adapter` has their JSON schema."""

    adapter: TypeAdapter[T]

    def encode(self, value: T) -> bytes:
        """UTF-8 JSON without line breaks, and without the fields that have their defaults. Raises StoreError for a
        value that JSON cannot represent."""
        try:
            return self.adapter.dump_json(value, exclude_defaults=True, warnings=False)
        except PydanticSerializationError as error:
            where = f" of {value.request_id!r}" if isinstance(value, RoutingRecord | Feedback) else ""
            raise StoreError(f"{type(value).__name__}{where} cannot be written as JSON: {error}") from None

    def decode(self, line: bytes | str) -> T:
        """The value in a line, without unknown keys. Raises StoreError for a record of a newer schema, DamagedEntry for
        invalid JSON or fields."""
        try:
            return self.adapter.validate_json(line)
        except (ValidationError, InvalidRequest) as error:
            problems = error.errors() if isinstance(error, ValidationError) else []
            if any(one["loc"][-1:] == ("schema",) and one["type"] == "less_than_equal" for one in problems):
                raise StoreError(
                    "a record has a newer schema than this CoE reads; upgrade the CoE that reads"
                ) from None
            raise DamagedEntry(f"a damaged entry ({error}); remove it from the log") from None

    def decode_or_none(self, line: bytes | str) -> T | None:
        """Like `decode`, but None for a damaged line, so that one foreign entry does not make a log unreadable."""
        try:
            return self.decode(line)
        except DamagedEntry:
            return None


RECORD = Codec(TypeAdapter(RoutingRecord))
FEEDBACK = Codec(TypeAdapter(Feedback))
ENTRY: Codec[RoutingRecord | Pending] = Codec(TypeAdapter(RoutingRecord | Pending))
"""The lines of the spool."""


def events_in_order(lines: Iterable[bytes | None]) -> tuple[Feedback, ...]:
    """The events in these lines, oldest first."""
    events = [event for line in lines if line is not None and (event := FEEDBACK.decode_or_none(line)) is not None]
    return tuple(sorted(events, key=lambda event: (event.time, event.event_id)))


def feedback_page(lines: Iterable[bytes | None], *, cursor: str) -> FeedbackPage:
    """The page of these lines, ending at `cursor`."""
    found = [FEEDBACK.decode_or_none(line) for line in lines if line is not None]
    events = tuple(event for event in found if event is not None)
    return FeedbackPage(events, cursor, len(found) - len(events))
