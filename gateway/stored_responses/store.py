"""`ResponseStore`, the Protocol of a key-value store of Responses API answers by owner, and its SQLite implementation.

An owner is a tenant or an API key; the names of one owner mean nothing to another. Several processes of one machine may
share the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from coe.errors import ResponsesUnavailable, StoreError
from coe.records.database import Database

T = TypeVar("T")
_Work = Callable[[sqlite3.Connection], T]
TIMEOUT_SECONDS = 2.0
"""Time limit of one call."""
RETRY_AFTER = 1.0
"""Seconds after a failure during which every call fails at once."""
MAX_WAITING = 1_000
"""Calls of a process that run or wait; more fail at once."""
ENTRY_OVERHEAD_BYTES = 256
"""Bytes that an entry takes in addition to its value."""
MAX_EXPIRED = 1_000
"""Expired entries that one call deletes."""
RENEWED_SHARE = 0.05
"""Share of the lifetime after which a use renews an entry: a renewal writes the whole entry."""
FILE = "stored-responses.sqlite"
_TABLES = (
    """CREATE TABLE entries (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        expires REAL NOT NULL,
        size INTEGER NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (owner, name)
    )""",
    "CREATE INDEX entries_expires ON entries (owner, expires)",
    "CREATE INDEX entries_expired ON entries (expires)",
    "CREATE TABLE owners (owner TEXT PRIMARY KEY, size INTEGER NOT NULL)",
    """CREATE TRIGGER entered AFTER INSERT ON entries BEGIN
        INSERT INTO owners VALUES (new.owner, new.size)
        ON CONFLICT (owner) DO UPDATE SET size = size + new.size;
    END""",
    """CREATE TRIGGER deleted AFTER DELETE ON entries BEGIN
        UPDATE owners SET size = size - old.size WHERE owner = old.owner;
    END""",
)


class ResponseStore(Protocol):
    """Stores values for `lifetime` seconds after their last use. The values of an owner together have a bounded size;
    the least recently used ones are deleted first. Every call is bounded in time and raises ResponsesUnavailable."""

    degraded: bool
    """True while the last call failed."""

    async def get(self, owner: str, names: Sequence[str]) -> list[bytes | None]: ...

    async def sizes(self, owner: str, names: Sequence[str]) -> list[int]:
        """Returns the size of each value in bytes, 0 for a missing one. Does not renew the lifetime of the values."""

    async def put(self, owner: str, entries: Mapping[str, bytes]) -> None: ...

    async def delete(self, owner: str, names: Sequence[str]) -> int: ...

    async def aclose(self) -> None: ...


class SqliteResponseStore:
    """A ResponseStore in a file that only its user may read. Its calls run one after another."""

    def __init__(self, path: Path, *, lifetime: float, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self.degraded = False
        self._retry_at = 0.0
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._database = Database(path, tables=_TABLES, version=1, durable=False, private=True)
        self._path = path
        self._lifetime = lifetime
        self._max_bytes = max_bytes
        self._clock = clock

    async def get(self, owner: str, names: Sequence[str]) -> list[bytes | None]:
        now = self._clock()
        query = "SELECT value, expires FROM entries WHERE owner = ? AND name = ? AND expires > ?"

        def read(connection: sqlite3.Connection) -> list[tuple[bytes, float] | None]:
            return [connection.execute(query, (owner, name, now)).fetchone() for name in names]

        rows = await self._run(self._database.read, read)
        recent = now + (1 - RENEWED_SHARE) * self._lifetime
        old = [name for name, row in zip(names, rows, strict=True) if row is not None and row[1] <= recent]
        if old:
            with suppress(ResponsesUnavailable):  # the values are read; `degraded` reports the failure
                await self._renew(owner, old, expires=now + self._lifetime)
        return [None if row is None else row[0] for row in rows]

    async def _renew(self, owner: str, names: Sequence[str], *, expires: float) -> None:
        renewed = "UPDATE entries SET expires = ? WHERE owner = ? AND name = ?"

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(renewed, [(expires, owner, name) for name in names])

        await self._run(self._database.write, write)

    async def sizes(self, owner: str, names: Sequence[str]) -> list[int]:
        query = "SELECT size FROM entries WHERE owner = ? AND name = ? AND expires > ?"

        def read(connection: sqlite3.Connection) -> list[int]:
            rows = [connection.execute(query, (owner, name, self._clock())).fetchone() for name in names]
            return [0 if row is None else row[0] - ENTRY_OVERHEAD_BYTES for row in rows]

        return await self._run(self._database.read, read)

    async def put(self, owner: str, entries: Mapping[str, bytes]) -> None:
        now = self._clock()

        def write(connection: sqlite3.Connection) -> None:
            expired = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires <= ? LIMIT ?)"
            connection.execute(expired, (now, MAX_EXPIRED))
            for name, value in entries.items():
                connection.execute("DELETE FROM entries WHERE owner = ? AND name = ?", (owner, name))
                row = (owner, name, now + self._lifetime, len(value) + ENTRY_OVERHEAD_BYTES, value)
                connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
            self._make_room(connection, owner)

        await self._run(self._database.write, write)

    def _make_room(self, connection: sqlite3.Connection, owner: str) -> None:
        row = connection.execute("SELECT size FROM owners WHERE owner = ?", (owner,)).fetchone()
        excess = (row[0] if row else 0) - self._max_bytes
        oldest = "SELECT rowid, size FROM entries WHERE owner = ? ORDER BY expires, rowid"
        rows = []
        for rowid, size in connection.execute(oldest, (owner,)) if excess > 0 else ():
            rows.append((rowid,))
            if (excess := excess - size) <= 0:
                break
        connection.executemany("DELETE FROM entries WHERE rowid = ?", rows)

    async def delete(self, owner: str, names: Sequence[str]) -> int:
        def work(connection: sqlite3.Connection) -> int:
            delete = "DELETE FROM entries WHERE owner = ? AND name = ? AND expires > ?"
            return sum(connection.execute(delete, (owner, name, self._clock())).rowcount for name in names)

        return await self._run(self._database.write, work)

    async def aclose(self) -> None:
        await self._database.aclose()

    async def _run(self, call: Callable[[_Work[T]], Awaitable[T]], work: _Work[T]) -> T:
        if self._waiting >= MAX_WAITING:
            raise unavailable(f"{MAX_WAITING} calls wait for it")
        self._waiting += 1
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._turn:
                if self.degraded and time.monotonic() < self._retry_at:
                    raise unavailable(f"{self._path} failed less than {RETRY_AFTER:g} s ago")
                result = await call(work)
        except (StoreError, TimeoutError) as error:
            self.degraded, self._retry_at = True, time.monotonic() + RETRY_AFTER
            raise unavailable(str(error) or f"{self._path} does not reply") from None
        finally:
            self._waiting -= 1
        self.degraded = False
        return result


def unavailable(problem: str) -> ResponsesUnavailable:
    """Returns the error for a store that failed."""
    message = f"the store of earlier answers is unavailable ({problem}); try again, or send the conversation in `input`"
    return ResponsesUnavailable(message, retry_after=RETRY_AFTER)
