"""Writes feedback in batches off the request path, and spools it while the log is down.

`keep` returns once an event is on disk, so that the client's 202 holds. An event may arrive before the record of its
request: the writer then compares tenants as soon as the record can be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DamagedEntry, StoreError
from coe.records import feedback as codec
from coe.records import spool as spooled
from coe.records.feedback import Feedback, FeedbackKind, FeedbackLog
from coe.records.record import RoutingLog
from coe.records.writer import BackgroundWriter

SCHEMA = 1
"""The schema of spooled feedback that this code writes, and the newest that it reads."""
MAX_BATCH_EVENTS = 200
"""Events of one append. Each unchecked one needs a lookup in the routing log first."""
APPEND_TIMEOUT_SECONDS = 1.0
"""Time limit of the log for one batch, which then goes to the spool; clients wait for one of the two."""
CLOSE_TIMEOUT_SECONDS = 2.5
"""Time limit of the log, and then of the spool, to store the remaining events when the process ends."""


_OPTIONS: Mapping[str, Any] = {
    "task_name": "feedback",
    "batch": MAX_BATCH_EVENTS,
    "append_timeout": APPEND_TIMEOUT_SECONDS,
    "close_timeout": CLOSE_TIMEOUT_SECONDS,
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


def _encode(pending: Pending) -> bytes:
    """The event as UTF-8 JSON. Raises StoreError."""
    return orjson.dumps(
        {
            "event": orjson.Fragment(codec.encode_event(pending.event)),
            "checked": pending.checked,
            "is_admin": pending.is_admin,
        }
    )


def _decode(line: bytes) -> Pending:
    """The event in a line. Raises DamagedEntry."""
    try:
        values = orjson.loads(line)
        event = codec.decode_event(orjson.dumps(values["event"]))
        return Pending(event, bool(values["checked"]), bool(values["is_admin"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedEntry(f"a damaged event of feedback ({error!r}); remove it from the spool") from None


FEEDBACK: spooled.EntryType[Pending] = spooled.EntryType(
    "feedback", _encode, _decode, lambda _: SCHEMA, SCHEMA, refuses=True
)


class FeedbackWriter(BackgroundWriter[Pending]):
    """Writes feedback to `feedback`; `records` is the routing log next to it. The caller closes both.

    `count` is called with the kind of every event that is on disk.
    """

    def __init__(
        self,
        feedback: FeedbackLog,
        records: RoutingLog,
        *,
        spool: Path | None,
        count: Callable[[FeedbackKind], None],
        **options: Any,
    ) -> None:
        """The `options` are those of BackgroundWriter."""
        super().__init__(self._store, kind=FEEDBACK, name="feedback", spool=spool, **{**_OPTIONS, **options})
        self.rejected = 0
        """Events dropped since the start because their request belonged to another tenant."""
        self._feedback, self._records, self._count = feedback, records, count
        self._waiters: dict[int, asyncio.Future[None]] = {}

    async def keep(self, pending: Pending) -> None:
        """Stores one event, and returns once it is in the log or the spool. Raises StoreError if neither accepts it."""
        if self.stuck or self._closing.is_set():
            raise StoreError(self.last_error or "the process is shutting down")
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[id(pending)] = waiter
        try:
            self.put(pending)
            await waiter
        finally:
            del self._waiters[id(pending)]

    async def _store(self, entries: Sequence[Pending]) -> None:
        found = await asyncio.gather(*(self._resolved(one) for one in entries))
        await self._feedback.append([event for event in found if event is not None])

    async def _resolved(self, pending: Pending) -> Feedback | None:
        """The event with its request's tenant; None if the request belongs to another tenant. The record of an unknown
        request may still arrive, so learning compares the tenants again."""
        event = pending.event
        if pending.checked or (record := await self._records.find(event.request_id)) is None:
            return event
        if pending.is_admin or record.tenant == event.tenant:
            return replace(event, tenant=record.tenant)
        self.rejected += 1
        return None

    def _on_stored(self, entries: Sequence[Pending]) -> None:
        for pending in entries:
            self._count(pending.event.kind)
            if (waiter := self._waiters.get(id(pending))) is not None and not waiter.done():
                waiter.set_result(None)

    def _on_rejected(self) -> None:
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(StoreError(self.last_error or "neither the log nor the spool accepts it"))
