"""Background writing to a log: a bounded queue in memory, a task that appends batches, and a spool on disk.

`put` never waits and never fails. RecordWriter writes routing records; `coe.records.feedback_writer` writes feedback.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from coe.errors import StoreError
from coe.outage import Outage
from coe.records.record import RoutingLog, RoutingRecord
from coe.records.spool import RECORDS, EntryType, Spool
from coe.supervision import TaskFailed, ignore_failure, supervised

logger = logging.getLogger("coe.records")

SPOOL_POLL_SECONDS = 60.0
"""Interval at which an empty spool is checked for entries of other processes."""
IDLE_SECONDS = 0.5
"""Interval at which a writer without entries checks its spool, and whether a retry is due."""


T = TypeVar("T")


class BackgroundWriter(Generic[T]):
    """Writes entries with `append` in a task. No failure of it reaches the caller of `put`.

    A batch that `append` refuses goes to the spool, and from there to the log once it works again: no entry is lost or
    written twice. If the spool fails too, or there is none, entries wait in the queue and the oldest are dropped. A
    killed process loses the entries of its last `interval` seconds, or those of an append that did not return.

    `kind` is the spool's entry type, and `name` the log's name in warnings. `capacity` bounds the queue and `batch` one
    append, in entries. `interval` is the pause between batches, `append_timeout` limits one append, and `close_timeout`
    limits how long leaving the context waits for the log and, after that, for the spool. `first_retry` and `max_retry`
    bound the pause after a failure. All in seconds.
    """

    def __init__(
        self,
        append: Callable[[Sequence[T]], Awaitable[None]],
        *,
        kind: EntryType[T],
        name: str,
        spool: Path | None,
        capacity: int = 10_000,
        batch: int = 500,
        interval: float = 0.02,
        append_timeout: float = 10.0,
        close_timeout: float = 5.0,
        first_retry: float = 0.5,
        max_retry: float = 30.0,
        task_name: str = "records",
        task_failed: TaskFailed = ignore_failure,
    ) -> None:
        self._task_name, self._task_failed = task_name, task_failed
        self.dropped = 0
        """Entries lost since the start, for whatever reason."""
        self.spooled = 0
        """Entries put into the spool since the start."""
        pauses: Any = {"counts": self._counts, "first": first_retry, "longest": max_retry}
        self._log_outage = Outage(name, **pauses)
        waits = f"; up to {capacity} entries wait in memory, then the oldest are dropped"
        self._spool_outage = Outage(f"{name}: spool", waits, **pauses)
        self._overflow = Outage(f"{name}: queue", counts=self._counts)
        self._write, self._kind, self._name = append, kind, name
        self._spool = Spool(spool, kind) if spool else None
        self._queue: deque[T] = deque(maxlen=capacity)
        self._in_flight: list[T] = []
        self._overflowed = False
        """True if the full queue dropped entries since the last warning about it."""
        self._capacity, self._batch, self._interval = capacity, batch, interval
        self._append_timeout, self._close_timeout = append_timeout, close_timeout
        self._next_poll = 0.0
        self._closing = asyncio.Event()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def backlog(self) -> int:
        """Entries in memory that are neither in the log nor in the spool yet."""
        return len(self._queue) + len(self._in_flight)

    @property
    def last_error(self) -> str | None:
        """The cause of the log's failure, or of the spool's if both fail; None while the log works."""
        return self._log_outage.cause and (self._spool_outage.cause or self._log_outage.cause)

    @property
    def spool_error(self) -> str | None:
        """The cause of the spool's failure; None while it works."""
        return self._spool_outage.cause

    @property
    def stuck(self) -> bool:
        """True while both the log and the spool pause after a failure."""
        return self._log_outage.pausing and (self._spool is None or self._spool_outage.pausing)

    def put(self, entry: T) -> None:
        """Queues one entry. A full queue drops its oldest entry and counts it."""
        if self._closing.is_set():
            self.dropped += 1
            return
        if len(self._queue) == self._capacity:
            self.dropped += 1
            self._overflowed = True
        self._queue.append(entry)
        if not self._arrived.is_set():
            self._arrived.set()

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, self._task_name, task_failed=self._task_failed, may_return=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes the rest to the log or the spool, within twice `close_timeout`; counts entries that neither
        accepted."""
        assert self._task is not None
        self._closing.set()
        self._arrived.set()
        self._log_outage.retry_now()  # try once more before leaving
        with suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout):
                await self._task
        with suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout):
                await self._spool_rest()
        if self.backlog:
            self._on_rejected()
            self.dropped += self.backlog
            self._queue.clear()
            cause = self.last_error or f"the log and the spool did not answer within {2 * self._close_timeout:g} s"
            logger.warning("%s: %d entries dropped so far, some at the end: %s", self._name, self.dropped, cause)

    async def _run(self) -> None:
        while True:
            closing = self._closing.is_set()
            has_more = False
            try:
                has_more = await self._write_once()
            except Exception as error:  # a bug here must not stop the writer
                self._log_outage.began(repr(error), pause=False)
            self._report_overflow()
            if has_more:
                continue
            if closing:
                return
            await self._pause()

    async def _pause(self) -> None:
        """Waits for an entry, at most IDLE_SECONDS, then for `interval`. So an idle writer wakes up twice a second, not
        fifty times."""
        if not self.backlog and not self._closing.is_set():
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_SECONDS):
                    await self._arrived.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._interval):
                await self._closing.wait()

    async def _write_once(self) -> bool:
        """Writes one batch from the queue and one from the spool. Returns whether there is more to do at once."""
        if not await self._store_batch():
            return False
        if self._closing.is_set():  # spooled entries are safe on disk, so closing does not deliver them
            return bool(self._queue)
        return await self._deliver_spooled() or len(self._queue) >= self._batch

    async def _store_batch(self) -> bool:
        """Moves one batch from the queue into the log or the spool, or back to the queue if both fail."""
        if self.stuck:
            return False
        self._in_flight = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
        try:
            if self._in_flight and not await self._append(self._in_flight):
                await self._spool_in_flight()
                if self._in_flight:
                    self._on_rejected()
            else:
                self._on_stored(self._in_flight)
                self._in_flight = []
            return not self._in_flight
        finally:
            self._requeue()

    async def _append(self, entries: Sequence[T]) -> bool:
        if self._log_outage.pausing:
            return False
        try:
            async with asyncio.timeout(self._append_timeout):
                await self._write(entries)
        except Exception as error:  # the entries are kept and the task continues
            timed_out = isinstance(error, TimeoutError)
            self._log_outage.began(
                f"the log did not answer within {self._append_timeout:g} s" if timed_out else str(error)
            )
            return False
        self._log_outage.ended()
        return True

    async def _spool_in_flight(self) -> None:
        """Moves the entries in flight to the spool, without those that cannot be encoded."""
        count = len(self._in_flight)
        self._in_flight = [entry for entry in self._in_flight if self._is_encodable(entry)]
        self.dropped += count - len(self._in_flight)
        if self._spool is None or self._spool_outage.pausing:
            return
        try:
            self.dropped += await self._spool.add(self._in_flight)
        except StoreError as error:
            self._next_poll = 0.0  # once the log works, the spool is read at once, which shows whether it works again
            self._spool_outage.began(str(error))
            return
        self._spool_outage.ended()
        self.spooled += len(self._in_flight)
        self._on_stored(self._in_flight)
        self._in_flight = []
        self._next_poll = 0.0

    async def _deliver_spooled(self) -> bool:
        """Moves one batch from the spool into the log. Returns whether more may be waiting."""
        if self._spool is None or self._log_outage.pausing or time.monotonic() < self._next_poll:
            return False
        try:
            waiting = await self._spool.oldest(self._batch)
            if waiting.entries and not await self._append(waiting.entries):
                return False
            if waiting.rows:
                await self._spool.remove(waiting.rows)
        except StoreError as error:
            self._next_poll = time.monotonic() + SPOOL_POLL_SECONDS
            self._spool_outage.began(str(error), "; entries in it wait, new ones go to the log", pause=False)
            return False
        self._spool_outage.ended()
        if waiting.damaged:
            self.dropped += waiting.damaged
            self._spool_outage.warn(f"{waiting.damaged} damaged entries", " are removed")
        if len(waiting.rows) == self._batch:
            return True
        self._next_poll = time.monotonic() + SPOOL_POLL_SECONDS
        return False

    async def _spool_rest(self) -> None:
        """Moves the remaining entries to the spool, even if it failed just before."""
        self._spool_outage.retry_now()
        self._in_flight = list(self._queue)
        self._queue.clear()
        try:
            if self._in_flight:
                await self._spool_in_flight()
        finally:
            self._requeue()
            if self._spool is not None:
                await self._spool.aclose()

    def _on_stored(self, entries: Sequence[T]) -> None:
        """Called with entries that are in the log or the spool now."""

    def _on_rejected(self) -> None:
        """Called when neither accepted the entries in flight; they return to the queue."""

    def _requeue(self) -> None:
        room = self._capacity - len(self._queue)
        requeued = self._in_flight[-room:] if room else []
        self._overflowed |= len(requeued) < len(self._in_flight)
        self.dropped += len(self._in_flight) - len(requeued)
        self._queue.extendleft(reversed(requeued))
        self._in_flight = []

    def _is_encodable(self, entry: T) -> bool:
        try:
            self._kind.encode(entry)
        except StoreError as error:
            self._log_outage.warn(str(error), "; the entry is dropped")
            return False
        return True

    def _report_overflow(self) -> None:
        """Log that the full queue dropped entries, also while the log works but is slower than they arrive."""
        if self._overflowed and self._overflow.warn(f"full with {self._capacity} entries, so the oldest are dropped"):
            self._overflowed = False

    def _counts(self) -> str:
        return f"{self.spooled} entries spooled, {self.dropped} dropped, {self.backlog} waiting"


class RecordWriter(BackgroundWriter[RoutingRecord]):
    """Writes records to `log`, which the caller closes; the options are those of BackgroundWriter."""

    def __init__(self, log: RoutingLog, *, spool: Path | None, **options: Any) -> None:
        super().__init__(log.append, kind=RECORDS, name="routing log", spool=spool, **options)
