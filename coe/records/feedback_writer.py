"""Feedback off the request path: written to the log in batches, or spooled while the log is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from coe.errors import DamagedEntry, LogError
from coe.records import feedback as codec
from coe.records import spool as spooled
from coe.records.feedback import Feedback, FeedbackLog, Kind
from coe.records.record import RoutingLog
from coe.records.writer import BackgroundWriter

SCHEMA = 1
"""The newest schema of spooled feedback that this code reads and the one it writes."""
BATCH = 200
"""Events of one append. Each unchecked one needs a look into the routing log first."""
PATIENCE = 1.0
"""Seconds that the log has to take a batch before it goes to the spool; clients wait for one of the two."""
DEADLINE = 2.5
"""Seconds that the log, and then the spool, have for what is left when the process ends."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An event on its way. `checked`: its request is known and the event has the tenant of it. An event that is not is
    compared with the record once the log can be read; with `administers` it may be about any tenant's request."""

    event: Feedback
    checked: bool = True
    administers: bool = False


def _encode(pending: Pending) -> bytes:
    """UTF-8 JSON. Raises LogError."""
    return orjson.dumps(
        {
            "event": orjson.Fragment(codec.encode(pending.event)),
            "checked": pending.checked,
            "administers": pending.administers,
        }
    )


def _decode(line: bytes) -> Pending:
    """Raises DamagedEntry."""
    try:
        values = orjson.loads(line)
        event = codec.decode(orjson.dumps(values["event"]))
        return Pending(event, bool(values["checked"]), bool(values["administers"]))
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedEntry(f"a damaged event of feedback ({error!r}); remove it from the spool") from None


FEEDBACK: spooled.Kind[Pending] = spooled.Kind("feedback", _encode, _decode, lambda _: SCHEMA, SCHEMA, refuses=True)


class FeedbackWriter(BackgroundWriter[Pending]):
    """Writes feedback to `feedback`; `records` is the routing log beside it. Both stay the caller's to close.

    `keep` returns once the event is on disk, in the log or the spool. `count` is called with the kind of every event
    that is.
    """

    def __init__(
        self,
        feedback: FeedbackLog,
        records: RoutingLog,
        *,
        spool: Path | None,
        count: Callable[[Kind], None],
        batch: int = BATCH,
        patience: float = PATIENCE,
        deadline: float = DEADLINE,
        **options: Any,
    ) -> None:
        super().__init__(
            self._store,
            kind=FEEDBACK,
            name="feedback",
            task_name="feedback",
            spool=spool,
            batch=batch,
            patience=patience,
            deadline=deadline,
            **options,
        )
        self.rejected = 0
        """Events left out since the start because their request turned out to be another tenant's."""
        self._feedback, self._records, self._count = feedback, records, count
        self._waiters: dict[int, asyncio.Future[None]] = {}

    async def keep(self, pending: Pending) -> None:
        """Store one event. Raises LogError where neither the log nor the spool takes it."""
        if self.stuck or self._closing.is_set():
            raise LogError(self.last_error or "the process is about to end")
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
        """The event with its request's tenant; None if the request is another tenant's. The record of an unknown
        request may still come, so learning compares the tenants again."""
        event = pending.event
        if pending.checked or (record := await self._records.find(event.request_id)) is None:
            return event
        if pending.administers or record.tenant == event.tenant:
            return replace(event, tenant=record.tenant)
        self.rejected += 1
        return None

    def _kept(self, entries: Sequence[Pending]) -> None:
        for pending in entries:
            self._count(pending.event.kind)
            if (waiter := self._waiters.get(id(pending))) is not None and not waiter.done():
                waiter.set_result(None)

    def _refused(self) -> None:
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(LogError(self.last_error or "neither the log nor the spool takes it"))
