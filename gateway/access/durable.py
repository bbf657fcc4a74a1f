"""Counting the use of keys in one process, kept in the state folder: a restart does not forget what was spent.

What API keys have used, in a SQLite file that outlives the process and is shared by processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from coe.errors import LogError
from coe.records.database import Database, Migration
from coe.supervision import Backoff, TaskFailed, ignore_failure, supervised
from gateway.access.buckets import DAY, MINUTE
from gateway.access.limits import Meter
from gateway.access.memory import MemoryLimiter

MIGRATIONS: tuple[Migration, ...] = (
    (
        "CREATE TABLE use (key TEXT NOT NULL, meter TEXT NOT NULL, stamp INTEGER NOT NULL, used REAL NOT NULL, "
        "at REAL NOT NULL, PRIMARY KEY (key, meter)) WITHOUT ROWID",
    ),
)
RETENTION = 40 * DAY
"""Seconds after which the use of a key is deleted that has not been used since: longer than a month's window."""
READ = "SELECT key, meter, stamp, used, at FROM use"
FIND = "SELECT stamp, used, at FROM use WHERE key = ? AND meter = ?"
WRITE = "INSERT OR REPLACE INTO use (key, meter, stamp, used, at) VALUES (?, ?, ?, ?, ?)"
TRIM = "DELETE FROM use WHERE at < ?"

Place = tuple[str, str]
"""The names of a key and of one of its meters."""


class Used(NamedTuple):
    """What is used of one limit: in the window `stamp`, or of a bucket as it was at the Unix time `at`."""

    stamp: int
    used: float
    at: float

    def of(self, meter: Meter, *, stamp: int, now: float) -> float:
        """What counts of it now: nothing of another window, and of a bucket what has not been refilled since."""
        if meter.unit == 2:
            return self.used if self.stamp == stamp else 0.0
        return max(0.0, self.used - max(0.0, now - self.at) * meter.limit / MINUTE)


class Change(NamedTuple):
    """What one process used of a limit since its last change; negative where a reservation was returned."""

    meter: Meter
    stamp: int
    amount: float


class UsageStore:
    """All methods raise LogError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(path, migrations=MIGRATIONS)

    async def load(self, *, now: float) -> dict[Place, Used]:
        """All that is known, without what is too old to count."""
        if not self._path.exists():
            return {}

        def work(connection: sqlite3.Connection) -> dict[Place, Used]:
            connection.execute(TRIM, (now - RETENTION,))
            return {(key, meter): Used(*rest) for key, meter, *rest in connection.execute(READ)}

        return await self._database.write(work)

    async def add(self, changes: Mapping[Place, Sequence[Change]], *, now: float) -> dict[Place, Used]:
        """Add the changes to what all processes have written, on disk when this returns. Returns the sums."""

        def work(connection: sqlite3.Connection) -> dict[Place, Used]:
            found = {}
            for place, several in changes.items():
                row = connection.execute(FIND, place).fetchone()
                sum_ = Used(*row) if row else None
                for change in several:
                    sum_ = added(sum_, change, now=now)
                assert sum_ is not None
                connection.execute(WRITE, (*place, *sum_))
                found[place] = sum_
            return found

        return await self._database.write(work)

    async def aclose(self) -> None:
        await self._database.aclose()


def added(known: Used | None, change: Change, *, now: float) -> Used:
    """The sum of what is known and a change. A change of a former window no longer counts."""
    if known is not None and known.stamp > change.stamp:
        return known
    before = known.of(change.meter, stamp=change.stamp, now=now) if known is not None else 0.0
    return Used(change.stamp, max(0.0, before + change.amount), now)


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
        self, path: Path, *, clock: Callable[[], float] = time.time, task_failed: TaskFailed = ignore_failure
    ) -> None:
        super().__init__(clock=clock)
        self._task_failed = task_failed
        self._store = UsageStore(path)
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
