"""An event of feedback as one line of JSON and back, and the slot it has in a log.

Feedback on an answer as people send it, and the log where it waits to be learnt from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, get_args

import orjson

from coe.errors import DamagedEntry, InvalidRequest, LogError

Kind = Literal["score", "thumb", "preferred", "category", "regenerated", "abandoned"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LONGEST = 128
"""Characters of an id or a name in feedback."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """One event about one request; the same `event_id` is the same event, however often it arrives.

    `value` goes by `kind`: a number from 0 to 1 (score), 1 up or -1 down (thumb), the name of the expert that should
    have answered (preferred), the category that the request belongs to (category), None for the implicit signals
    regenerated and abandoned. `time` is in Unix seconds; `tenant` and `key` name who sent it. Raises InvalidRequest
    for anything else.
    """

    event_id: str
    request_id: str
    time: float
    kind: Kind
    value: float | str | None = None
    tenant: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequest(f"kind: {self.kind!r} is none of {', '.join(KINDS)}", param="kind")
        for name in ("event_id", "request_id"):
            if not 0 < len(getattr(self, name)) <= LONGEST:
                raise InvalidRequest(f"{name}: must have 1 to {LONGEST} characters", param=name)
        if not math.isfinite(self.time):
            raise InvalidRequest(f"time: {self.time} is no time", param="time")
        rule, fits = _VALUES[self.kind]
        if not fits(self.value):
            raise InvalidRequest(f"value: {self.value!r} does not fit {self.kind}, which takes {rule}", param="value")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_VALUES: Mapping[Kind, tuple[str, Callable[[object], bool]]] = {
    "score": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),  # type: ignore[operator]
    "thumb": ("1 or -1", lambda value: _is_number(value) and value in (1, -1)),
    "preferred": ("the name of an expert", _is_name),
    "category": ("the name of a category", _is_name),
    "regenerated": ("no value", lambda value: value is None),
    "abandoned": ("no value", lambda value: value is None),
}


@dataclass(frozen=True, slots=True)
class FeedbackPage:
    """Some events in the order they were stored, the cursor after the last of them, and how many entries on the way
    there were damaged and left out."""

    events: tuple[Feedback, ...]
    cursor: str
    damaged: int = 0


class FeedbackLog(Protocol):
    """Where feedback waits to be learnt from, as long as the routing log keeps records. Methods raise LogError.

    There is one event for each request, kind and API key: the latest by `time`, then by `event_id`. An event that is
    there already, by its `event_id`, or that is older than the one there, changes nothing. So neither repetition nor
    the order of arrival matters, and nobody fills the log by changing their mind. A replacement comes at the end again:
    whoever reads on from a cursor gets it.

    `read` returns at most `limit` events after the cursor `after`, oldest first, and an empty page with the same cursor
    when nothing is new. `about` returns what the API keys of those names (None: no key) said of one request, oldest
    first by `time`.
    """

    async def append(self, events: Sequence[Feedback]) -> None: ...

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage: ...

    async def about(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]: ...

    async def aclose(self) -> None: ...


_KNOWN = frozenset(field.name for field in fields(Feedback))


def slot(event: Feedback) -> bytes:
    """What it shares with those that it replaces, or that replace it: request, kind and API key, in 16 bytes."""
    return _slot(event.request_id, event.kind, event.key)


def slots(request_id: str, keys: Iterable[str | None]) -> list[bytes]:
    """All that events of those keys about one request may have."""
    return [_slot(request_id, kind, key) for key in keys for kind in KINDS]


def _slot(request_id: str, kind: Kind, key: str | None) -> bytes:
    return hashlib.blake2b(orjson.dumps((request_id, kind, key)), digest_size=16).digest()


def encode(event: Feedback) -> bytes:
    """UTF-8 JSON without line breaks. Raises LogError where JSON cannot say it."""
    try:
        return orjson.dumps(event)
    except TypeError as error:
        raise LogError(f"feedback {event.event_id!r} cannot be written as JSON: {error}") from None


def decode(line: bytes) -> Feedback:
    """The event in `line`. Unknown keys are left out. Raises DamagedEntry."""
    try:
        return Feedback(**{name: value for name, value in orjson.loads(line).items() if name in _KNOWN})
    except (ValueError, TypeError, AttributeError, InvalidRequest) as error:
        raise DamagedEntry(f"a damaged event of feedback ({error}); remove it from the log") from None


def intact(line: bytes) -> Feedback | None:
    """The same, None for a damaged line."""
    try:
        return decode(line)
    except DamagedEntry:
        return None


def in_order(lines: Iterable[bytes]) -> tuple[Feedback, ...]:
    """The events in these lines, oldest first."""
    found = [event for line in lines if (event := intact(line)) is not None]
    return tuple(sorted(found, key=lambda event: (event.time, event.event_id)))


def page(lines: Iterable[bytes], *, cursor: str) -> FeedbackPage:
    """The page of these lines."""
    found = [intact(line) for line in lines]
    events = tuple(event for event in found if event is not None)
    return FeedbackPage(events, cursor, len(found) - len(events))
