"""Writing off the request path: a bounded queue, a task that batches, and a spool for when the log is away."""

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

from coe.errors import LogError
from coe.records.record import RoutingLog, RoutingRecord
from coe.records.spool import RECORDS, Kind, Spool
from coe.supervision import Backoff, TaskFailed, ignore_failure, supervised

logger = logging.getLogger("coe.records")

WARN_SECONDS = 60.0
LOOK_SECONDS = 60.0  # how often an empty spool is looked into for what another process left there


T = TypeVar("T")


class BackgroundWriter(Generic[T]):
    """Writes entries with `append` in the background; nothing that goes wrong there reaches the caller of `put`.

    A batch that `append` refuses goes to the spool (a file that outlives the process and may be shared by several) and
    from there to the log once it works again: nothing lost, nothing twice. Where the spool fails too, or there is none,
    entries wait in the queue and the oldest give way. A killed process loses what was put in its last `interval`
    seconds, or what was in an append that did not return.

    `kind` says how entries are spooled, and `name` what the log is called in warnings. `capacity` bounds the queue and
    `batch` one append, in entries; `interval` is the wait between batches, `patience` how long one append may take,
    `deadline` how long leaving the context may wait for the log and, after that, for the spool; `first_retry` and
    `longest_retry` bound the pause after a failure. All in seconds.
    """

    def __init__(
        self,
        append: Callable[[Sequence[T]], Awaitable[None]],
        *,
        kind: Kind[T],
        name: str,
        spool: Path | None,
        capacity: int = 10_000,
        batch: int = 500,
        interval: float = 0.02,
        patience: float = 10.0,
        deadline: float = 5.0,
        first_retry: float = 0.5,
        longest_retry: float = 30.0,
        task_name: str = "records",
        task_failed: TaskFailed = ignore_failure,
    ) -> None:
        self._task_name, self._task_failed = task_name, task_failed
        self.dropped = 0
        """Entries lost since the start, for whatever reason."""
        self.spooled = 0
        """Entries put into the spool since the start."""
        self.last_error: str | None = None
        """Why the log or the spool failed last; None once the log works again."""
        self._write, self._kind, self._name = append, kind, name
        self._spool = Spool(spool, kind) if spool else None
        self._queue: deque[T] = deque(maxlen=capacity)
        self._in_flight: list[T] = []
        self._capacity, self._batch, self._interval = capacity, batch, interval
        self._patience, self._deadline = patience, deadline
        self._log_backoff = Backoff(first=first_retry, longest=longest_retry)
        self._spool_backoff = Backoff(first=first_retry, longest=longest_retry)
        self._next_look = self._next_warning = 0.0
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def backlog(self) -> int:
        """Entries in memory that are in neither log nor spool yet."""
        return len(self._queue) + len(self._in_flight)

    @property
    def stuck(self) -> bool:
        """True while neither log nor spool is tried, because both failed just now."""
        return self._log_backoff.resting and (self._spool is None or self._spool_backoff.resting)

    def put(self, entry: T) -> None:
        """Hand over one entry: no waiting, no error. In a full queue the oldest entry gives way and is counted."""
        if self._closing.is_set():
            self.dropped += 1
            return
        if len(self._queue) == self._capacity:
            self.dropped += 1
        self._queue.append(entry)

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, self._task_name, task_failed=self._task_failed, may_return=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is left to the log or the spool, within twice the deadline; count what neither took."""
        assert self._task is not None
        self._closing.set()
        self._log_backoff.reset()  # one more try, however it did before
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline):
                await self._task
        with suppress(TimeoutError):
            async with asyncio.timeout(self._deadline):
                await self._save_rest()
        if self.backlog:
            self._refused()
            self.dropped += self.backlog
            self._queue.clear()
            logger.warning(
                "%s: %d entries dropped so far, some at the end: %s", self._name, self.dropped, self.last_error
            )

    # ------------------------------------------------------------------------------------------- the background task

    async def _run(self) -> None:
        while True:
            closing = self._closing.is_set()
            try:
                if await self._turn():
                    continue
            except Exception as error:  # a bug, not a store: still no reason to stop writing
                self._complain(repr(error))
            if closing:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._closing.wait()

    async def _turn(self) -> bool:
        """One batch from the queue and one from the spool. Whether another turn has something to do at once."""
        if not await self._store_next():
            return False
        if self._closing.is_set():  # what the spool holds is safe, so leaving does not wait for it
            return bool(self._queue)
        return await self._forward() or len(self._queue) >= self._batch

    async def _store_next(self) -> bool:
        """Move one batch from the queue into the log or the spool; what neither takes returns to the queue."""
        if self.stuck:
            return False
        self._in_flight = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
        try:
            if self._in_flight and not await self._append(self._in_flight):
                await self._set_aside()
                if self._in_flight:
                    self._refused()
            else:
                self._kept(self._in_flight)
                self._in_flight = []
            return not self._in_flight
        finally:
            self._put_back()

    async def _append(self, entries: Sequence[T]) -> bool:
        if self._log_backoff.resting:
            return False
        try:
            async with asyncio.timeout(self._patience):
                await self._write(entries)
        except Exception as error:  # whatever it is, the entries are kept and the task lives on
            self._log_backoff.failed()
            silent = isinstance(error, TimeoutError)
            self._complain(f"the log did not answer within {self._patience:g} s" if silent else str(error))
            return False
        self._log_backoff.reset()
        self.last_error = None
        return True

    async def _set_aside(self) -> None:
        """What is in flight into the spool, less the entries that no store could ever take."""
        count = len(self._in_flight)
        self._in_flight = [entry for entry in self._in_flight if self._writable(entry)]
        self.dropped += count - len(self._in_flight)
        if self._spool is None or self._spool_backoff.resting:
            return
        try:
            self.dropped += await self._spool.add(self._in_flight)
        except LogError as error:
            self._spool_backoff.failed()
            self._complain(f"the spool fails too: {error}")
            return
        self._spool_backoff.reset()
        self.spooled += len(self._in_flight)
        self._kept(self._in_flight)
        self._in_flight = []
        self._next_look = 0.0

    async def _forward(self) -> bool:
        """One batch from the spool into the log. Whether more may be waiting."""
        if self._spool is None or self._log_backoff.resting or time.monotonic() < self._next_look:
            return False
        try:
            waiting = await self._spool.oldest(self._batch)
            if waiting.entries and not await self._append(waiting.entries):
                return False
            if waiting.rows:
                await self._spool.remove(waiting.rows)
        except LogError as error:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._complain(f"the spool fails: {error}")
            return False
        self.dropped += waiting.damaged
        if len(waiting.rows) == self._batch:
            return True
        self._next_look = time.monotonic() + LOOK_SECONDS
        return False

    async def _save_rest(self) -> None:
        """The last chance of what the log did not take in time: the spool, however it did before."""
        self._spool_backoff.reset()
        self._in_flight = list(self._queue)
        self._queue.clear()
        try:
            if self._in_flight:
                await self._set_aside()
        finally:
            self._put_back()
            if self._spool is not None:
                await self._spool.aclose()

    # ------------------------------------------------------------------------------------------- the small parts

    def _kept(self, entries: Sequence[T]) -> None:
        """Called with entries that are in the log or the spool now."""

    def _refused(self) -> None:
        """Called where neither took them; they return to the queue."""

    def _put_back(self) -> None:
        room = self._capacity - len(self._queue)
        kept = self._in_flight[-room:] if room else []
        self.dropped += len(self._in_flight) - len(kept)
        self._queue.extendleft(reversed(kept))
        self._in_flight = []

    def _writable(self, entry: T) -> bool:
        try:
            self._kind.encode(entry)
        except LogError as error:
            self._complain(str(error))
            return False
        return True

    def _complain(self, problem: str) -> None:
        """Keep the problem for the metrics and say so, at most once in WARN_SECONDS."""
        self.last_error = problem
        if time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + WARN_SECONDS
            logger.warning(
                "%s: %s (%d entries spooled, %d dropped, %d waiting)",
                self._name,
                problem,
                self.spooled,
                self.dropped,
                self.backlog,
            )


class RecordWriter(BackgroundWriter[RoutingRecord]):
    """Writes records to `log`, which stays the caller's to close; the options are those of BackgroundWriter."""

    def __init__(self, log: RoutingLog, *, spool: Path | None, **options: Any) -> None:
        super().__init__(log.append, kind=RECORDS, name="routing log", spool=spool, **options)
