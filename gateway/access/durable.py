"""Counting the use of keys in one process, kept in the state folder: a restart does not forget what was spent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from coe.errors import LogError
from coe.records.backoff import Backoff
from coe.supervision import TaskFailed, ignored, supervised
from gateway.access.limits import Meter
from gateway.access.memory import MemoryLimiter
from gateway.access.use_store import Change, Place, Used, UseStore

_log = logging.getLogger("gateway")

FILE = "use.sqlite"
"""In the state folder."""
FLUSH = 0.5
"""Seconds between two writes: what a crash may lose."""

LAST_WRITE = 2.0
"""Seconds that the last write may take when the process ends, or a failed task may pause before it."""

Pending = dict[Place, dict[int, Change]]
"""What is not written yet, by window."""


class DurableLimiter(MemoryLimiter):
    """A MemoryLimiter that begins with what is kept in a file and writes there what is used, while it is entered.

    Requests never wait for the file. `degraded` is True while it cannot be read or written; what is used meanwhile is
    kept in memory and written later. Several processes may use one file: it holds their sum, and each takes over the
    others' part of the money that a key has spent whenever it writes its own.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, task_failed: TaskFailed = ignored
    ) -> None:
        super().__init__(clock=clock)
        self._task_failed = task_failed
        self._store = UseStore(path)
        self._path = path
        self._known: dict[Place, Used] = {}
        self._pending: Pending = {}
        self._backoff = Backoff(first=FLUSH, longest=30.0)
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            self._known = await self._store.load(now=self._clock())
        except LogError as error:
            self._failed(error)
        self._task = supervised(self._write_regularly, "limits", task_failed=self._task_failed, may_return=True)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Write what is left."""
        self._closing.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITE):
                await self._task
        await self._store.aclose()

    # --------------------------------------------------------------------------------------------- for accounts

    def note(self, key: str, meter: Meter, stamp: int, amount: float) -> None:
        """So much was used, or returned where it is negative."""
        changes = self._pending.setdefault((key, meter.name), {})
        before = changes.get(stamp)
        changes[stamp] = Change(meter, stamp, amount if before is None else before.amount + amount)

    def used(self, key: str, meter: Meter, stamp: int) -> float:
        """What was used of a limit that is declared only now, as far as the file says."""
        known = self._known.get((key, meter.name))
        return 0.0 if known is None else known.of(meter, stamp=stamp, now=self._clock())

    # --------------------------------------------------------------------------------------------- in the background

    async def _write_regularly(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH):
                    await self._closing.wait()
            if not self._backoff.resting:
                await self._write()
        await self._write()

    async def _write(self) -> None:
        pending, self._pending = self._pending, {}
        if not pending:
            return
        changes = {place: list(several.values()) for place, several in pending.items()}
        try:
            sums = await self._store.add(changes, now=self._clock())
        except LogError as error:
            self._failed(error)
            self._put_back(pending)
            return
        except BaseException:
            self._put_back(pending)
            raise
        self._backoff.reset()
        if self.degraded:
            self.degraded = False
            _log.warning("limits: %s can be used again", self._path)
        self._known |= sums
        for place, sum_ in sums.items():
            self._take_over(place, sum_)

    def _put_back(self, pending: Pending) -> None:
        for (key, _), several in pending.items():
            for change in several.values():
                self.note(key, *change)

    def _take_over(self, place: Place, sum_: Used) -> None:
        """Count what other processes spent, too."""
        account = self._accounts.get(place[0])
        if account is not None:
            waiting = self._pending.get(place, {}).get(sum_.stamp)
            account.take_over(place[1], sum_.stamp, sum_.used + (waiting.amount if waiting else 0.0))

    def _failed(self, error: LogError) -> None:
        self._backoff.failed()
        if not self.degraded:
            self.degraded = True
            _log.warning("limits: %s; until then what keys use is counted in memory only", error)
