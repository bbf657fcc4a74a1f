"""`SharedStore`: small values and counters that processes share, in SQLite or in Redis 6.2 or newer.

Limits, issued keys, affinity, the answer cache and stored responses each open one. Whoever opens a store decides what
its failure means; see `coe.outage`. The values of `MemoryStore` are those of one process.

`SharedCache`: values that may be lost. Lookups wait briefly, writes happen in the background, and no call fails.

The answer cache and the experts of conversations (affinity) each have one over a ValueStore.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from coe.errors import StoreError
from coe.outage import Outage
from coe.records.sqlite import Database
from coe.redis import RedisClient

REDIS_TIMEOUT_SECONDS = 2.0
"""Time limit of one call to Redis, connecting included."""
MAX_CONNECTIONS = 16
ENTRY_OVERHEAD_BYTES = 256
"""Bytes that an entry counts in addition to its value."""
MAX_EXPIRED = 1_000
"""Expired entries that one call deletes."""


class Change(NamedTuple):
    """A change of a counter by `amount`. The counter is forgotten `ttl` seconds after its last change."""

    amount: float
    ttl: float


class ValueStore(Protocol):
    """Values by group and name. All methods raise StoreError.

    The values of a group have at most `max_bytes` together, with ENTRY_OVERHEAD_BYTES each; the oldest are deleted
    first.
    """

    async def get(self, names: Sequence[str], *, group: str = "") -> list[bytes | None]:
        """Return the values, None for missing ones."""

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        """Store the values for `ttl` seconds."""

    async def aclose(self) -> None: ...


class SharedStore(ValueStore, Protocol):
    """Values that processes share, and counters by name."""

    place: str
    """Address or path of the store, for errors."""

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        """Return the bytes of each value, 0 for missing ones."""

    async def delete(self, names: Sequence[str], *, group: str = "") -> None:
        """Delete the values."""

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        """Store `new` without expiry if the value is `old`, empty for none. Return whether the value is `new` now."""

    async def add(self, changes: Mapping[str, Change]) -> dict[str, float]:
        """Change the counters in one step, and return their values. It reaches the store also without changes."""


class MemoryStore:
    """A ValueStore of one process, with one group."""

    def __init__(self, *, max_bytes: float = math.inf, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: dict[str, tuple[float, bytes]] = {}
        """Expiry and value by name, the oldest first."""
        self._size = 0

    async def get(self, names: Sequence[str], *, group: str = "") -> list[bytes | None]:
        now = self._clock()
        entries = (self._entries.get(name, (0.0, b"")) for name in names)
        return [value if expires > now else None for expires, value in entries]

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        for name, value in values.items():
            self._drop(name)
            self._entries[name] = (self._clock() + ttl, value)
            self._size += len(value) + ENTRY_OVERHEAD_BYTES
        while self._size > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: str) -> None:
        if (entry := self._entries.pop(name, None)) is not None:
            self._size -= len(entry[1]) + ENTRY_OVERHEAD_BYTES

    async def aclose(self) -> None: ...


_TABLES = (
    """CREATE TABLE entries (
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        expires REAL NOT NULL,
        size INTEGER NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (owner, name)
    )""",
    "CREATE INDEX entries_oldest ON entries (owner, expires, size)",
    "CREATE INDEX entries_expired ON entries (expires)",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, used REAL NOT NULL, expires REAL NOT NULL) WITHOUT ROWID",
)
_ADD = """INSERT INTO counters VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET used = used + excluded.used, expires = excluded.expires"""


class SqliteStore:
    """A SharedStore in a file that only its user may read, for the processes of one machine.

    Without the file it is empty, and reading creates none. Unless `durable`, a power cut may lose the latest changes.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: float = math.inf,
        durable: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.place = str(path)
        self._max_bytes = max_bytes
        self._clock = clock
        self._database = Database(path, tables=_TABLES, version=2, durable=durable, private=True)

    async def get(self, names: Sequence[str], *, group: str = "") -> list[bytes | None]:
        return await self._select("value", names, group, default=None)

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        return await self._select("length(value)", names, group, default=0)

    async def _select(self, column: str, names: Sequence[str], group: str, *, default: Any) -> list[Any]:
        if not self._database.exists():
            return [default] * len(names)
        query = f"SELECT {column} FROM entries WHERE owner = ? AND name = ? AND expires > ?"  # noqa: S608 (constants)
        now = self._clock()

        def read(connection: sqlite3.Connection) -> list[Any]:
            rows = (connection.execute(query, (group, name, now)).fetchone() for name in names)
            return [default if row is None else row[0] for row in rows]

        return await self._database.read(read)

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        now = self._clock()

        def write(connection: sqlite3.Connection) -> None:
            expired = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires <= ? LIMIT ?)"
            connection.execute(expired, (now, MAX_EXPIRED))
            rows = [(group, name, now + ttl, len(one) + ENTRY_OVERHEAD_BYTES, one) for name, one in values.items()]
            connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            (total,) = connection.execute("SELECT total(size) FROM entries WHERE owner = ?", (group,)).fetchone()
            oldest = "SELECT rowid, size FROM entries WHERE owner = ? ORDER BY expires, rowid"
            too_old = []
            for rowid, size in connection.execute(oldest, (group,)) if total > self._max_bytes else ():
                too_old.append((rowid,))
                if (total := total - size) <= self._max_bytes:
                    break
            connection.executemany("DELETE FROM entries WHERE rowid = ?", too_old)

        await self._database.write(write)

    async def delete(self, names: Sequence[str], *, group: str = "") -> None:
        rows = [(group, name) for name in names]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM entries WHERE owner = ? AND name = ?", rows)

        await self._database.write(write)

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            row = connection.execute("SELECT value FROM entries WHERE owner = '' AND name = ?", (name,)).fetchone()
            if (row[0] if row else b"") not in (old, new):
                return False
            row = "", name, math.inf, len(new) + ENTRY_OVERHEAD_BYTES, new
            connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", row)
            return True

        return await self._database.write(write)

    async def add(self, changes: Mapping[str, Change]) -> dict[str, float]:
        now = self._clock()
        rows = [(name, change.amount, now + change.ttl) for name, change in changes.items() if change.amount]

        def work(connection: sqlite3.Connection) -> dict[str, float]:
            if rows:
                connection.execute("DELETE FROM counters WHERE expires <= ?", (now,))
                connection.executemany(_ADD, rows)
            query = "SELECT used FROM counters WHERE name = ? AND expires > ?"
            return {name: (connection.execute(query, (name, now)).fetchone() or (0.0,))[0] for name in changes}

        if rows:
            return await self._database.write(work)
        return await self._database.read(work) if self._database.exists() else dict.fromkeys(changes, 0.0)

    async def aclose(self) -> None:
        await self._database.aclose()


# Stores values and deletes the oldest beyond the bound. KEYS: the list of the group's entries, the oldest first, and
# their bytes together. ARGV: the lifetime in milliseconds, the bound in bytes, the prefix of entries, the overhead;
# then name and value of each entry. An entry that was deleted or replaced counts until it would have expired. At most
# 100 expired entries leave the list at a time.
_PUT = """
local ttl, bound, time = tonumber(ARGV[1]), tonumber(ARGV[2]), redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local total = 0
for i = 5, #ARGV, 2 do
  local size = #ARGV[i + 1] + ARGV[4]
  redis.call('SET', ARGV[3] .. ARGV[i], ARGV[i + 1], 'PX', ttl)  -- a full Redis refuses it before anything has changed
  redis.call('RPUSH', KEYS[1], string.format('%.0f %d %s', now + ttl, size, ARGV[i]))
  total = redis.call('INCRBY', KEYS[2], size)
end
local expired = 0
while true do
  local oldest = redis.call('LINDEX', KEYS[1], 0)
  if not oldest then
    redis.call('DEL', KEYS[2])
    break
  end
  local expires, size, name = string.match(oldest, '(%d+) (%d+) (.*)')
  if tonumber(expires) <= now and expired < 100 then
    expired = expired + 1
  elseif total <= bound then
    break
  elseif redis.call('PTTL', ARGV[3] .. name) <= expires - now + 1 then  -- it was not replaced since
    redis.call('DEL', ARGV[3] .. name)
  end
  redis.call('LPOP', KEYS[1])
  total = redis.call('DECRBY', KEYS[2], size)
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ttl) end
"""
# KEYS: the entry. ARGV: the old and the new value.
_REPLACE = """
local value = redis.call('GET', KEYS[1]) or ''
if value ~= ARGV[1] and value ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class RedisStore:
    """A SharedStore in Redis for any number of gateways, with `space` in its keys.

    `setting` is the key of experts.yaml that has the address. Raises ConfigError when `url` cannot be a Redis address.
    """

    def __init__(self, url: str, space: str, *, setting: str, max_bytes: int = 0) -> None:
        self._redis = RedisClient(
            url, key=setting, error=StoreError, connections=MAX_CONNECTIONS, connect_timeout=None, timeout=None
        )
        self.place = self._redis.place
        self._space = space
        self._max_bytes = max_bytes
        self._put, self._replace = map(self._redis.client.register_script, (_PUT, _REPLACE))

    async def get(self, names: Sequence[str], *, group: str = "") -> list[bytes | None]:
        prefix = self._prefix(group)
        found: list[bytes | None] = await self._run(
            self._redis.client.mget([prefix + one for one in names] or [prefix])
        )
        return found[: len(names)]

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        pipeline = self._redis.client.pipeline(transaction=False)
        for name in names:
            pipeline.strlen(self._prefix(group) + name)
        found: list[int] = await self._run(pipeline.execute())
        return found

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        prefix, milliseconds = self._prefix(group), max(1, round(ttl * 1000))
        if self._max_bytes:
            head = (milliseconds, self._max_bytes, prefix, ENTRY_OVERHEAD_BYTES)
            arguments = [*head, *(part for entry in values.items() for part in entry)]
            await self._run(self._put(keys=[f"{prefix}entries", f"{prefix}bytes"], args=arguments))
            return
        pipeline = self._redis.client.pipeline(transaction=False)
        for name, value in values.items():
            pipeline.set(prefix + name, value, px=milliseconds)
        await self._run(pipeline.execute())

    async def delete(self, names: Sequence[str], *, group: str = "") -> None:
        await self._run(self._redis.client.delete(*(self._prefix(group) + name for name in names)))

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        return bool(await self._run(self._replace(keys=[self._prefix("") + name], args=[old, new])))

    async def add(self, changes: Mapping[str, Change]) -> dict[str, float]:
        prefix = self._prefix("")
        pipeline = self._redis.client.pipeline()
        pipeline.ping()
        for name, change in changes.items():
            pipeline.incrbyfloat(prefix + name, change.amount)
            pipeline.expire(prefix + name, math.ceil(change.ttl))
        return dict(zip(changes, (await self._run(pipeline.execute()))[1::2], strict=True))

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _run(self, command: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                return await self._redis.run(command)
        except StoreError:
            raise
        except Exception as error:  # also a bug in the client library: it must not fail a request
            raise StoreError(self._redis.describe(error)) from error

    def _prefix(self, group: str) -> str:
        """Begins all keys of a group. The braces put them into one slot of a Redis cluster; the digest keeps braces of
        the name out. The number is the version of the format."""
        return f"coe:{{{self._space}{hashlib.sha256(group.encode()).hexdigest()[:32] if group else ''}}}:1:"


def open_store(
    address: str, space: str, *, file: Path, setting: str, max_bytes: int = 0, durable: bool = True
) -> SharedStore:
    """The store at the address of a Redis, or else in `file`. `max_bytes` bounds each group; 0 is no bound. Raises
    ConfigError for an invalid address."""
    if address.startswith("redis"):
        return RedisStore(address, space, setting=setting, max_bytes=max_bytes)
    return SqliteStore(file, max_bytes=max_bytes or math.inf, durable=durable)


MAX_PENDING_BYTES = 16 * 2**20
"""Bytes of values that wait to be written; further values are dropped."""
PENDING_OVERHEAD_BYTES = 256


class SharedCache:
    """A cache over `store`, which it closes, and an async context manager.

    `wait` bounds a lookup in seconds. After a failure, lookups find nothing until the store accepts a write. Values are
    dropped during the pause of `outage`; the next one is written then.
    """

    def __init__(self, store: ValueStore, outage: Outage, *, wait: float) -> None:
        self.outage = outage
        self._store = store
        self._wait = wait
        self._pending: dict[float, dict[str, bytes]] = {}
        """Values to write, by lifetime and name."""
        self.pending_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Writes what is pending, as far as the store works."""
        if self._writing is not None:
            await self._writing
        await self._store.aclose()

    async def get(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the values; None for what is missing or comes too late."""
        if not self.outage.active:
            lookup = asyncio.ensure_future(self._store.get(names))
            lookup.add_done_callback(self._note_failure)  # also of one that comes too late
            await asyncio.wait((lookup,), timeout=self._wait)
            if lookup.done() and lookup.exception() is None:
                return lookup.result()
        return [None] * len(names)

    def put(self, name: str, value: bytes, *, ttl: float) -> None:
        """Store the value soon."""
        size = len(value) + PENDING_OVERHEAD_BYTES
        if self.outage.pausing or self.pending_bytes + size > MAX_PENDING_BYTES:
            return
        self._pending.setdefault(ttl, {})[name] = value
        self.pending_bytes += size
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    def _note_failure(self, lookup: asyncio.Future[list[bytes | None]]) -> None:
        if not lookup.cancelled() and (error := lookup.exception()) is not None:
            self.outage.began(str(error))

    async def _write(self) -> None:
        """Writes what is pending, one batch after the other. Does not fail."""
        while self._pending:
            pending, self._pending, self.pending_bytes = self._pending, {}, 0
            try:
                for ttl, values in pending.items():
                    await self._store.put(values, ttl=ttl)
            except Exception as error:  # a value that is not stored must not fail anything
                self.outage.began(str(error))
            else:
                self.outage.ended()
