"""`DurableLimiter` stores the use of API keys in a SQLite file, so that a restart does not reset budgets.

It counts in memory, collects changes and writes them twice a second; requests never wait for the file. Several
processes may share one file: it holds their sum.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from coe.errors import StoreError
from coe.records.database import Database
from coe.supervision import Backoff, TaskFailed, ignore_failure, supervised
from gateway.access.limits import DAY, MINUTE, MemoryLimiter, Meter, MeterKey, PendingChanges, UseChange

TABLES = (
    "CREATE TABLE use (key TEXT NOT NULL, meter TEXT NOT NULL, window_id INTEGER NOT NULL, used REAL NOT NULL, "
    "at REAL NOT NULL, PRIMARY KEY (key, meter)) WITHOUT ROWID",
)
RETENTION_SECONDS = 40 * DAY
"""Stored use that is older is deleted: longer than a month's window."""
SELECT_ALL = "SELECT key, meter, window_id, used, at FROM use"
SELECT_ONE = "SELECT window_id, used, at FROM use WHERE key = ? AND meter = ?"
UPSERT = "INSERT OR REPLACE INTO use (key, meter, window_id, used, at) VALUES (?, ?, ?, ?, ?)"
DELETE_OLD = "DELETE FROM use WHERE at < ?"


class StoredUse(NamedTuple):
    """The use of one limit: in a calendar window, or of a bucket as of the Unix time `at`."""

    window: int
    used: float
    at: float

    def of(self, meter: Meter, *, window: int, now: float) -> float:
        """The part of the use that still counts: none of another window, and of a bucket what has not been refilled
        since."""
        if meter.unit == 2:
            return self.used if self.window == window else 0.0
        return max(0.0, self.used - max(0.0, now - self.at) * meter.limit / MINUTE)


class UsageStore:
    """The SQLite file. All methods raise StoreError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = Database(path, tables=TABLES, version=1)

    async def load(self, *, now: float) -> dict[MeterKey, StoredUse]:
        """Return all stored use, after deleting entries that are too old."""
        if not self._database.exists():
            return {}

        def work(connection: sqlite3.Connection) -> dict[MeterKey, StoredUse]:
            connection.execute(DELETE_OLD, (now - RETENTION_SECONDS,))
            return {(key, meter): StoredUse(*rest) for key, meter, *rest in connection.execute(SELECT_ALL)}

        return await self._database.write(work)

    async def add(self, changes: Mapping[MeterKey, Sequence[UseChange]], *, now: float) -> dict[MeterKey, StoredUse]:
        """Adds changes to what all processes have written, on disk on return. Returns the totals."""

        def work(connection: sqlite3.Connection) -> dict[MeterKey, StoredUse]:
            found = {}
            for meter_key, window_changes in changes.items():
                row = connection.execute(SELECT_ONE, meter_key).fetchone()
                total = StoredUse(*row) if row else None
                for change in window_changes:
                    total = add_change(total, change, now=now)
                assert total is not None
                connection.execute(UPSERT, (*meter_key, *total))
                found[meter_key] = total
            return found

        return await self._database.write(work)

    async def aclose(self) -> None:
        await self._database.aclose()


def add_change(stored: StoredUse | None, change: UseChange, *, now: float) -> StoredUse:
    """The sum of stored use and a change. A change of a past window no longer counts."""
    if stored is not None and stored.window > change.window:
        return stored
    previous = stored.of(change.meter, window=change.window, now=now) if stored is not None else 0.0
    return StoredUse(change.window, max(0.0, previous + change.amount), now)


_log = logging.getLogger("gateway")

KEY_USAGE_FILE = "key-usage.sqlite"
"""Name in the state folder."""
WRITE_INTERVAL_SECONDS = 0.5
"""Time between two writes: what a crash may lose."""

LAST_WRITE_TIMEOUT_SECONDS = 2.0
"""Time limit of the last write when the process ends, or of a failed task's pause before it."""


class DurableLimiter(MemoryLimiter):
    """A MemoryLimiter that starts from a file and writes use there while it is entered.

    `degraded` is True while the file cannot be read or written; changes stay in memory and are written later.
    Several processes may use one file: it holds their sum. Each learns what the others spent of a key's money whenever
    it writes its own.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, task_failed: TaskFailed = ignore_failure
    ) -> None:
        super().__init__(clock=clock)
        self._task_failed = task_failed
        self._store = UsageStore(path)
        self._path = path
        self._stored: dict[MeterKey, StoredUse] = {}
        self._backoff = Backoff(first=WRITE_INTERVAL_SECONDS, longest=30.0)
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        try:
            self._stored = await self._store.load(now=self._clock())
        except StoreError as error:
            self._on_failure(error)
        self._task = supervised(self._run, "limits", task_failed=self._task_failed, may_return=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Writes the remaining changes."""
        self._closing.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITE_TIMEOUT_SECONDS):
                await self._task
        await self._store.aclose()

    # --------------------------------------------------------------------------------------------- for accounts

    def used(self, key: str, meter: Meter, window: int) -> float:
        """The use of a newly declared limit, according to the file."""
        stored = self._stored.get((key, meter.name))
        return 0.0 if stored is None else stored.of(meter, window=window, now=self._clock())

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WRITE_INTERVAL_SECONDS):
                    await self._closing.wait()
            if not self._backoff.active:
                await self._write()
        await self._write()

    async def _write(self) -> None:
        pending, self._changes = self._changes, {}
        if not pending:
            return
        changes = {meter_key: list(window_changes.values()) for meter_key, window_changes in pending.items()}
        try:
            totals = await self._store.add(changes, now=self._clock())
        except StoreError as error:
            self._on_failure(error)
            self._requeue(pending)
            return
        except BaseException:
            self._requeue(pending)
            raise
        self._backoff.reset()
        if self.degraded:
            self.degraded = False
            _log.warning("limits: %s can be used again", self._path)
        self._stored |= totals
        for meter_key, total in totals.items():
            self._apply_total(meter_key, total)

    def _requeue(self, pending: PendingChanges) -> None:
        for (key, _), window_changes in pending.items():
            for change in window_changes.values():
                self.record(key, change.meter, change.window, change.amount)

    def _apply_total(self, meter_key: MeterKey, total: StoredUse) -> None:
        """Counts what other processes spent, too."""
        account = self._accounts.get(meter_key[0])
        if account is not None:
            waiting = self._changes.get(meter_key, {}).get(total.window)
            account.set_used(meter_key[1], total.window, total.used + (waiting.amount if waiting else 0.0))

    def _on_failure(self, error: StoreError) -> None:
        self._backoff.failed()
        if not self.degraded:
            self.degraded = True
            _log.warning("limits: %s; until then, the use of keys is counted in memory only", error)
