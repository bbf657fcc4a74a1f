"""The stored form of records and feedback: lines of JSON, which pydantic writes and reads.

Every log, the spool and `coe log export` store them. Unknown keys are ignored and missing optional keys take their
defaults; a record of a newer schema is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from coe.errors import DamagedEntry, InvalidRequest, StoreError
from coe.records.feedback import Feedback, FeedbackPage, Pending
from coe.records.record import RoutingRecord

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
            if isinstance(error, ValidationError) and any(
                one["loc"][-1:] == ("schema",) and one["type"] == "less_than_equal" for one in error.errors()
            ):
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
