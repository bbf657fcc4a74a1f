"""An event of feedback as one line of JSON and back, and the slot it has in a log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields

import orjson

from coe.errors import DamagedEntry, InvalidRequest, LogError
from coe.feedback import KINDS, Feedback, FeedbackPage, Kind

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
