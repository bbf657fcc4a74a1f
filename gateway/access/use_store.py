"""What API keys have used, in a SQLite file that outlives the process and is shared by processes."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from coe.records.database import Database, Migration
from gateway.access.buckets import DAY, MINUTE
from gateway.access.limits import Meter

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


class UseStore:
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
