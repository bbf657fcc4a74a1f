"""Feedback on answers: the event, its stored form, and the protocol of the log that keeps it until learning reads it.

An event is one line of JSON. Its dedup key names the request, kind and API key: a log keeps one event per dedup key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, get_args

import orjson

from coe.errors import DamagedEntry, InvalidRequest, StoreError

FeedbackKind = Literal["score", "thumb", "preferred", "category", "regenerated", "abandoned"]
FEEDBACK_KINDS: tuple[FeedbackKind, ...] = get_args(FeedbackKind)
MAX_NAME_CHARACTERS = 128
"""Characters of an id or a name in feedback."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One event about one request. The same `event_id` is the same event, however often it arrives.

    `value` depends on `kind`: a number from 0 to 1 (score), 1 up or -1 down (thumb), the name of the expert that should
    have answered (preferred), the category that the request belongs to (category), None for the implicit signals
    regenerated and abandoned. `time` is in Unix seconds; `tenant` and `key` name the sender. Raises InvalidRequest for
    any other value.
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


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARACTERS


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_VALUES: Mapping[FeedbackKind, tuple[str, Callable[[object], bool]]] = {
    "score": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),  # type: ignore[operator]
    "thumb": ("1 or -1", lambda value: _is_number(value) and value in (1, -1)),
    "preferred": ("the name of an expert", _is_name),
    "category": ("the name of a category", _is_name),
    "regenerated": ("no value", lambda value: value is None),
    "abandoned": ("no value", lambda value: value is None),
}


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


_KNOWN = frozenset(field.name for field in fields(Feedback))


def dedup_key(event: Feedback) -> bytes:
    """16 bytes that an event shares with those that it replaces: a digest of request, kind and API key."""
    return _dedup_key(event.request_id, event.kind, event.key)


def dedup_keys(request_id: str, keys: Iterable[str | None]) -> list[bytes]:
    """All dedup keys that events about one request may have, if they come from those API keys."""
    return [_dedup_key(request_id, kind, key) for key in keys for kind in FEEDBACK_KINDS]


def _dedup_key(request_id: str, kind: FeedbackKind, key: str | None) -> bytes:
    return hashlib.blake2b(orjson.dumps((request_id, kind, key)), digest_size=16).digest()


def encode_event(event: Feedback) -> bytes:
    """UTF-8 JSON without line breaks. Raises StoreError for a value that JSON cannot represent."""
    try:
        return orjson.dumps(event)
    except TypeError as error:
        raise StoreError(f"feedback {event.event_id!r} cannot be written as JSON: {error}") from None


def decode_event(line: bytes) -> Feedback:
    """The event in `line`, without unknown keys. Raises DamagedEntry."""
    try:
        values = {name: value for name, value in orjson.loads(line).items() if name in _KNOWN}
        return Feedback(**values)
    except (ValueError, TypeError, KeyError, AttributeError, InvalidRequest) as error:
        raise DamagedEntry(f"a damaged event of feedback ({error}); remove it from the log") from None


def decode_or_none(line: bytes) -> Feedback | None:
    """Like `decode_event`, but None for a damaged line."""
    try:
        return decode_event(line)
    except DamagedEntry:
        return None


def decode_in_order(lines: Iterable[bytes]) -> tuple[Feedback, ...]:
    """The events in these lines, oldest first."""
    found = [event for line in lines if (event := decode_or_none(line)) is not None]
    return tuple(sorted(found, key=lambda event: (event.time, event.event_id)))


def decode_page(lines: Iterable[bytes], *, cursor: str) -> FeedbackPage:
    """The page of these lines, ending at `cursor`."""
    found = [decode_or_none(line) for line in lines]
    events = tuple(event for event in found if event is not None)
    return FeedbackPage(events, cursor, len(found) - len(events))
