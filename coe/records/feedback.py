"""Feedback on answers: the event, and the protocol of the log that keeps it until learning reads it.

The dedup key of an event names the request, kind and API key: a log keeps one event per dedup key.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import orjson

from coe.errors import InvalidRequest

FeedbackKind = Literal["score", "thumb", "preferred", "category", "regenerated", "abandoned"]
FEEDBACK_KINDS: tuple[FeedbackKind, ...] = get_args(FeedbackKind)
"""The most reliable kind of rating first; of several on one request the first kind counts."""
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
    "category": ("the name of a category", _is_name),
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
