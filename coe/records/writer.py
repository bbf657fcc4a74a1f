"""Writes records and feedback in the background: a bounded queue, a task that appends batches, and a spool on disk.

An append-only file of lines that the log cannot accept yet. It survives crashes, and processes may share it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

from coe.errors import DamagedEntry, StoreError
from coe.outage import Outage
from coe.records.record import ENTRY, Feedback, FeedbackKind, FeedbackLog, Pending, RoutingLog, RoutingRecord
from coe.supervision import TaskFailed, ignore_failure, supervised

MAX_BYTES = 1_000_000_000
"""Size of a full file, which accepts no more. Another file of this size may be on its way to the log."""


class Spool:
    """First in, first out. The methods block, and raise StoreError.

    Lines are appended to `path`. To deliver them, one process renames the file, locks it and reads it to its end. A
    crash before the end delivers the file again; the log knows its entries by their ids and ignores the repeated ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sent, self._lock = path.with_name(f"{path.name}.sending"), path.with_name(f"{path.name}.lock")
        self._file: BinaryIO | None = None
        self._delivered = self._read = 0
        """Positions in the file after the delivered lines, and after those that `oldest` returned."""

    def append(self, lines: Sequence[bytes]) -> None:
        """Add all lines or none; they are on disk on return."""
        content = memoryview(b"".join(b"\n" + line for line in lines))  # so a line that a crash cut off spoils no other
        with self._locked(), self.path.open("ab", buffering=0) as file:
            size = file.tell()
            if size + len(content) > MAX_BYTES:
                raise StoreError(f"{self.path}: full with {size} bytes that wait for the log")
            try:
                while content:
                    content = content[file.write(content) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def oldest(self, count: int) -> list[bytes]:
        """The first `count` lines; none if no line waits, or while another process delivers them."""
        with self._locked():
            while (file := self._file or self._open()) is not None:
                file.seek(self._delivered)
                lines = [line.rstrip(b"\n") for line in islice(file, count)]
                self._read = file.tell()
                if lines:
                    return lines
                self._sent.unlink(missing_ok=True)
                self.close()
        return []

    def delivered(self) -> None:
        """Forget the lines that `oldest` returned, as the log has them."""
        self._delivered = self._read

    def close(self) -> None:
        """Let another process deliver the rest."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> BinaryIO | None:
        try:
            if not self._sent.exists():
                self.path.rename(self._sent)
            file = self._sent.open("rb")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        self._file, self._delivered = file, 1  # after the first line break
        return file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock.open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            remedy = "check that the disk has room and that the file may be written"
            raise StoreError(f"{self.path}: {error.strerror or error}; {remedy}") from error


logger = logging.getLogger("coe.records")

SPOOL_POLL_SECONDS = 60.0
"""Interval at which an empty spool is checked for entries of other processes."""
IDLE_SECONDS = 0.5
"""Interval at which a writer without entries checks its spool, and whether a retry is due."""
APPEND_SECONDS = 10.0
"""Time limit of the log for one batch."""
SPOOL_AFTER_SECONDS = 1.0
"""Time limit of the log for one new batch that can go to a spool instead, as clients wait for one of the two."""


Entry = RoutingRecord | Pending


class LogWriter:
    """Writes records to `log` and feedback to `feedback`, which the caller closes.

    `put` never waits and never fails, and `keep` returns once an event is on disk. A batch that the log refuses goes to
    the spool, and from there to the log once it works again: no entry is lost or written twice. If the spool fails too,
    or there is none, entries wait in the queue, and a full queue drops new ones. A killed process loses the entries of
    its last `interval` seconds, or those of an append that did not return.

    `capacity` bounds the queue and `batch` one append, in entries. `interval` is the pause between batches.
    `append_timeout` limits the append of one new batch, and `close_timeout` how long leaving the context waits for the
    log and, after that, for the spool. `first_retry` and `max_retry` bound the pause after a failure. All in seconds.
    `count` is called with the kind of every event of feedback that is on disk.
    """

    def __init__(
        self,
        log: RoutingLog,
        feedback: FeedbackLog,
        *,
        spool: Path | None,
        count: Callable[[FeedbackKind], None] = lambda _: None,
        capacity: int = 10_000,
        batch: int = 500,
        interval: float = 0.02,
        append_timeout: float | None = None,
        close_timeout: float = 5.0,
        first_retry: float = 0.5,
        max_retry: float = 30.0,
        task_failed: TaskFailed = ignore_failure,
    ) -> None:
        self.dropped = self.spooled = self.rejected = 0
        """Entries lost, put into the spool, and events rejected as their request was another tenant's."""
        self._log, self._feedback, self._count, self._task_failed = log, feedback, count, task_failed
        self._log_outage = Outage("routing log", counts=self._counts, first=first_retry, longest=max_retry)
        waits = f"; up to {capacity} entries wait in memory, no more are taken"
        self._spool_outage = Outage("routing log: spool", waits, counts=self._counts)
        self._spool = Spool(spool) if spool else None
        self._queue: deque[Entry] = deque()
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._capacity, self._batch, self._interval, self._close_timeout = capacity, batch, interval, close_timeout
        self._append_timeout = append_timeout or (SPOOL_AFTER_SECONDS if spool else APPEND_SECONDS)
        self._next_poll = 0.0
        self._closing, self._arrived = asyncio.Event(), asyncio.Event()

    @property
    def backlog(self) -> int:
        """Entries in memory that are neither in the log nor in the spool yet."""
        return len(self._queue)

    @property
    def last_error(self) -> str | None:
        """The cause of the log's failure, or of the spool's if both fail; None while the log works."""
        return self._log_outage.cause and (self._spool_outage.cause or self._log_outage.cause)

    @property
    def spool_error(self) -> str | None:
        """The cause of the spool's failure, or of the log's if there is no spool; None while it works."""
        return (self._spool_outage if self._spool else self._log_outage).cause

    @property
    def stuck(self) -> bool:
        """True while the log pauses after a failure and no spool works."""
        return self._log_outage.pausing and self.spool_error is not None

    def put(self, entry: Entry) -> None:
        """Queue one entry. A full queue drops it and counts it."""
        if self._closing.is_set() or len(self._queue) >= self._capacity:
            self.dropped += 1
            self._log_outage.warn(
                f"the queue of {self._capacity} entries is full or closed", ", so new ones are dropped"
            )
            return
        self._queue.append(entry)
        self._arrived.set()

    async def keep(self, pending: Pending) -> None:
        """Store one event, and return once it is in the log or the spool. Raises StoreError if neither accepts it."""
        if self.stuck or self._closing.is_set() or len(self._queue) >= self._capacity:
            closing = "the process is shutting down" if self._closing.is_set() else "too many entries wait for the log"
            raise StoreError(self.last_error or closing)
        waiter = self._waiters[id(pending)] = asyncio.get_running_loop().create_future()
        try:
            self.put(pending)
            await waiter
        finally:
            del self._waiters[id(pending)]

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, "records", task_failed=self._task_failed, may_return=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Write the rest to the log or the spool, within twice `close_timeout`; count what neither accepted."""
        self._closing.set()
        self._arrived.set()
        self._log_outage.retry_now()  # try once more before leaving
        await _within(self._close_timeout, self._task)
        await _within(self._close_timeout, self._to_spool(list(self._queue)))
        if self._spool is not None:
            self._spool.close()
        if self._queue:
            self._refuse_waiters()
            self.dropped += len(self._queue)
            self._queue.clear()
            cause = self.last_error or f"the log and the spool did not answer within {2 * self._close_timeout:g} s"
            logger.warning("routing log: %d entries dropped so far, some at the end: %s", self.dropped, cause)

    async def _run(self) -> None:
        while True:
            closing, more = self._closing.is_set(), False
            try:
                more = await self._write_once()
            except Exception as error:  # a bug here must not stop the writer
                self._log_outage.began(repr(error), pause=False)
            if not more:
                if closing:
                    return
                await self._pause()

    async def _pause(self) -> None:
        """Wait for an entry, at most IDLE_SECONDS, then for `interval`. So an idle writer wakes up twice a second, not
        fifty times."""
        if not self._queue and not self._closing.is_set():
            self._arrived.clear()
            await _within(IDLE_SECONDS, self._arrived.wait())
        await _within(self._interval, self._closing.wait())

    async def _write_once(self) -> bool:
        """Write one batch from the queue and one from the spool. Returns True if there is more to do at once."""
        if self.stuck:
            return False
        if batch := list(islice(self._queue, self._batch)):
            if await self._append(batch, self._append_timeout):
                self._finish(batch)
            elif not await self._to_spool(batch):
                self._refuse_waiters()
                return False
        if self._closing.is_set():  # spooled entries are safe on disk, so closing does not deliver them
            return bool(self._queue)
        return await self._deliver_spooled() or len(self._queue) >= self._batch

    async def _append(self, entries: Sequence[Entry], seconds: float) -> bool:
        if self._log_outage.pausing:
            return False
        try:
            async with asyncio.timeout(seconds):
                if records := [entry for entry in entries if isinstance(entry, RoutingRecord)]:
                    await self._log.append(records)
                if pending := [entry for entry in entries if isinstance(entry, Pending)]:
                    events = await asyncio.gather(*map(self._with_tenant, pending))
                    await self._feedback.append([event for event in events if event is not None])
        except Exception as error:  # the entries are kept and the task continues
            silent = isinstance(error, TimeoutError)
            self._log_outage.began(f"the log did not answer within {seconds:g} s" if silent else str(error))
            return False
        self._log_outage.ended()
        return True

    async def _with_tenant(self, pending: Pending) -> Feedback | None:
        """The event with its request's tenant; None if the request belongs to another tenant. The record of an unknown
        request may still arrive, so learning compares the tenants again."""
        event = pending.event
        if pending.checked or (record := await self._log.find(event.request_id)) is None:
            return event
        if pending.is_admin or record.tenant == event.tenant:
            return replace(event, tenant=record.tenant)
        self.rejected += 1
        return None

    async def _to_spool(self, batch: list[Entry]) -> bool:
        """Move the first entries of the queue to the spool; those that cannot be encoded are dropped."""
        lines = list[bytes]()
        for entry in tuple(batch):
            try:
                lines.append(ENTRY.encode(entry))
            except StoreError as error:
                self.dropped += 1
                self._log_outage.warn(str(error), "; the entry is dropped")
                batch.remove(entry)
                self._queue.remove(entry)
        if self._spool is None or not lines:
            return False
        self._next_poll = 0.0  # once the log works, the spool is read at once, which shows whether it works again
        try:
            await asyncio.to_thread(self._spool.append, lines)
        except StoreError as error:
            self._spool_outage.began(str(error))
            return False
        self._spool_outage.ended()
        self.spooled += len(lines)
        self._finish(batch)
        return True

    async def _deliver_spooled(self) -> bool:
        """Move one batch from the spool into the log. Returns True if more may be waiting."""
        if self._spool is None or self._log_outage.pausing or time.monotonic() < self._next_poll:
            return False
        entries, damaged = list[Entry](), 0
        try:
            lines = await asyncio.to_thread(self._spool.oldest, self._batch)
            for line in lines:
                try:
                    entries.append(ENTRY.decode(line))
                except DamagedEntry:
                    damaged += 1
        except StoreError as error:
            self._next_poll = time.monotonic() + SPOOL_POLL_SECONDS
            self._spool_outage.began(str(error), "; entries in it wait, new ones go to the log")
            return False
        if entries and not await self._append(entries, APPEND_SECONDS):
            return False
        self._spool.delivered()
        self._spool_outage.ended()
        if damaged:
            self.dropped += damaged
            self._spool_outage.warn(f"{damaged} damaged entries", " are removed")
        if not lines:
            self._next_poll = time.monotonic() + SPOOL_POLL_SECONDS
        return bool(lines)

    def _finish(self, batch: Sequence[Entry]) -> None:
        """Take the entries, which are in the log or the spool now, from the queue."""
        for entry in batch:
            self._queue.popleft()
            if isinstance(entry, Pending):
                self._count(entry.event.kind)
            if (waiter := self._waiters.get(id(entry))) is not None and not waiter.done():
                waiter.set_result(None)

    def _refuse_waiters(self) -> None:
        for waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(StoreError(self.last_error or "neither the log nor the spool accepts it"))

    def _counts(self) -> str:
        return f"{self.spooled} entries spooled, {self.dropped} dropped, {self.backlog} waiting"


async def _within(seconds: float, work: Awaitable[Any]) -> None:
    """Wait for `work`, which is cancelled after that time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work
