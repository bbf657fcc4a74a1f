"""`SharedStore`: small values and counters that processes share, in memory, in SQLite or in Redis 6.2 or newer.

Limits, issued keys, affinity, the answer cache and stored responses each open one. Whoever opens a store decides what
its failure means; see `coe.outage`.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import sqlite3
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from coe.errors import StoreError
from coe.records.database import Database
from coe.redis import RedisClient

REDIS_TIMEOUT_SECONDS = 2.0
"""Time limit of one call to Redis, connecting included."""
MAX_CONNECTIONS = 16
ENTRY_OVERHEAD_BYTES = 256
"""Bytes that an entry counts in addition to its value."""
MAX_EXPIRED = 1_000
"""Expired entries that one call deletes."""
RENEWED_SHARE = 0.05
"""Share of a lifetime after which SQLite renews an entry: a renewal writes the whole entry."""


class Change(NamedTuple):
    """A change of a counter by `amount`. The counter loses `leak` a second down to 0, and is forgotten `ttl` seconds
    after its last change."""

    amount: float
    ttl: float
    leak: float = 0.0


class SharedStore(Protocol):
    """Values by group and name, and counters by name. All methods raise StoreError.

    The values of a group have at most `max_bytes` together, with ENTRY_OVERHEAD_BYTES each; the least recently used are
    deleted first. Memory and Redis count every read as a use, SQLite those that renew.
    """

    place: str
    """Address or path of the store, for errors."""

    async def get(self, names: Sequence[str], *, group: str = "", renew: float = 0.0) -> list[bytes | None]:
        """Return the values, None for missing ones. With `renew`, those found live at least that many seconds."""

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        """Return the bytes of each value, 0 for missing ones. This is no use."""

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        """Store the values for `ttl` seconds."""

    async def delete(self, names: Sequence[str], *, group: str = "") -> int:
        """Delete the values. Return how many there were."""

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        """Store `new` without expiry if the value is `old`, empty for none. Return whether the value is `new` now."""

    async def add(self, changes: Mapping[str, Change]) -> dict[str, float]:
        """Change the counters in one step. Return their values, which are never negative. It reaches the store also
        without changes."""

    async def aclose(self) -> None: ...


def leaked(used: float, seconds: float, change: Change) -> float:
    """Return the value of a counter `seconds` after it was `used`, with the change."""
    return max(0.0, max(0.0, used - max(0.0, seconds) * change.leak) + change.amount)


class MemoryStore:
    """A SharedStore of one process."""

    place = "memory"

    def __init__(self, *, max_bytes: float = math.inf, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._groups = defaultdict[str, OrderedDict[str, tuple[float, bytes]]](OrderedDict)
        """Expiry and value by name, the least recently used first."""
        self._sizes = defaultdict[str, int](int)
        self._counters: dict[str, tuple[float, float, float]] = {}
        """Value, time of the last change and expiry."""

    async def get(self, names: Sequence[str], *, group: str = "", renew: float = 0.0) -> list[bytes | None]:
        now, entries = self._clock(), self._groups[group]
        found: list[bytes | None] = []
        for name in names:
            expires, value = entries.get(name, (0.0, b""))
            if expires > now:
                entries[name] = (max(expires, now + renew), value)
                entries.move_to_end(name)
                found.append(value)
            else:
                self._drop(group, name)
                found.append(None)
        return found

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        now, entries = self._clock(), self._groups[group]
        return [len(value) if expires > now else 0 for expires, value in (entries.get(n, (0.0, b"")) for n in names)]

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        entries = self._groups[group]
        for name, value in values.items():
            self._drop(group, name)
            entries[name] = (self._clock() + ttl, value)
            self._sizes[group] += len(value) + ENTRY_OVERHEAD_BYTES
        while self._sizes[group] > self._max_bytes:
            self._drop(group, next(iter(entries)))

    async def delete(self, names: Sequence[str], *, group: str = "") -> int:
        found = await self.get(names, group=group)
        for name in names:
            self._drop(group, name)
        return len(found) - found.count(None)

    def _drop(self, group: str, name: str) -> None:
        if (entry := self._groups[group].pop(name, None)) is not None:
            self._sizes[group] -= len(entry[1]) + ENTRY_OVERHEAD_BYTES

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        (found,) = await self.get([name])
        if (found or b"") not in (old, new):
            return False
        await self.put({name: new}, ttl=math.inf)
        return True

    async def add(self, changes: Mapping[str, Change]) -> dict[str, float]:
        now, found = self._clock(), {}
        self._counters = {name: one for name, one in self._counters.items() if one[2] > now}
        for name, change in changes.items():
            used, at, _ = self._counters.get(name, (0.0, now, now))
            found[name] = leaked(used, now - at, change)
            if change.amount:
                self._counters[name] = (found[name], now, now + change.ttl)
        return found

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
    """CREATE TABLE counters (
        name TEXT PRIMARY KEY,
        used REAL NOT NULL,
        at REAL NOT NULL,
        expires REAL NOT NULL
    ) WITHOUT ROWID""",
)


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
        self._database = Database(path, tables=_TABLES, version=1, durable=durable, private=True)

    async def get(self, names: Sequence[str], *, group: str = "", renew: float = 0.0) -> list[bytes | None]:
        now = self._clock()
        rows = await self._select("value, expires", names, group)
        recent = now + (1 - RENEWED_SHARE) * renew
        old = [name for name, row in zip(names, rows, strict=True) if row is not None and row[1] <= recent]
        if renew and old:
            changes = [(now + renew, group, name) for name in old]
            statement = "UPDATE entries SET expires = ? WHERE owner = ? AND name = ?"
            await self._database.write(lambda connection: connection.executemany(statement, changes) and None)
        return [None if row is None else row[0] for row in rows]

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        rows = await self._select("length(value)", names, group)
        return [0 if row is None else row[0] for row in rows]

    async def _select(self, columns: str, names: Sequence[str], group: str) -> list[Any]:
        if not self._database.exists():
            return [None] * len(names)
        query = f"SELECT {columns} FROM entries WHERE owner = ? AND name = ? AND expires > ?"  # noqa: S608 (constants)
        now = self._clock()
        return await self._database.read(
            lambda connection: [connection.execute(query, (group, name, now)).fetchone() for name in names]
        )

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        now = self._clock()

        def write(connection: sqlite3.Connection) -> None:
            expired = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE expires <= ? LIMIT ?)"
            connection.execute(expired, (now, MAX_EXPIRED))
            rows = [(group, name, now + ttl, len(one) + ENTRY_OVERHEAD_BYTES, one) for name, one in values.items()]
            connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            self._make_room(connection, group)

        await self._database.write(write)

    def _make_room(self, connection: sqlite3.Connection, group: str) -> None:
        (total,) = connection.execute("SELECT total(size) FROM entries WHERE owner = ?", (group,)).fetchone()
        oldest = "SELECT rowid, size FROM entries WHERE owner = ? ORDER BY expires, rowid"
        rows = []
        for rowid, size in connection.execute(oldest, (group,)) if total > self._max_bytes else ():
            rows.append((rowid,))
            if (total := total - size) <= self._max_bytes:
                break
        connection.executemany("DELETE FROM entries WHERE rowid = ?", rows)

    async def delete(self, names: Sequence[str], *, group: str = "") -> int:
        if not self._database.exists():
            return 0
        now = self._clock()
        statement = "DELETE FROM entries WHERE owner = ? AND name = ? AND expires > ?"
        return await self._database.write(
            lambda connection: sum(connection.execute(statement, (group, name, now)).rowcount for name in names)
        )

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
        has_changes = any(change.amount for change in changes.values())

        def work(connection: sqlite3.Connection) -> dict[str, float]:
            found, rows = {}, []
            if has_changes:
                connection.execute("DELETE FROM counters WHERE expires <= ?", (now,))
            for name, change in changes.items():
                query = "SELECT used, at FROM counters WHERE name = ? AND expires > ?"
                used, at = connection.execute(query, (name, now)).fetchone() or (0.0, now)
                found[name] = leaked(used, now - at, change)
                if change.amount:
                    rows.append((name, found[name], now, now + change.ttl))
            connection.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?)", rows)
            return found

        if has_changes:
            return await self._database.write(work)
        return await self._database.read(work) if self._database.exists() else dict.fromkeys(changes, 0.0)

    async def aclose(self) -> None:
        await self._database.aclose()


# Deletes values, and with a lifetime stores others in their place. KEYS: the index of uses, the sizes. ARGV: the time
# and the lifetime in milliseconds (0: delete), the bound in bytes (0: none), the prefix of entries, the overhead; then
# name and value of each entry. Returns how many there were. Entries unused for a lifetime have expired: at most 100 of
# them leave the index at a time.
_WRITE = """
local index, sizes = KEYS[1], KEYS[2]
local now, ttl, bound = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function drop(name)
  local size = redis.call('HGET', sizes, name)
  if size then
    redis.call('ZREM', index, name)
    redis.call('HDEL', sizes, name)
    redis.call('HINCRBY', sizes, '', -tonumber(size))
  end
  return redis.call('DEL', ARGV[4] .. name)
end
if redis.call('EXISTS', index) == 0 and redis.call('EXISTS', sizes) == 1 then redis.call('DEL', sizes) end
local existed = 0
for i = 6, #ARGV, 2 do
  local name, value = ARGV[i], ARGV[i + 1]
  if ttl == 0 then
    existed = existed + drop(name)
  else  -- first of all a command that a full Redis refuses: it refuses none after another change
    redis.call('SET', ARGV[4] .. name, value, 'PX', ttl)
  end
  if ttl > 0 and bound > 0 then
    local size = #value + ARGV[5]
    redis.call('HINCRBY', sizes, '', size - (redis.call('HGET', sizes, name) or 0))
    redis.call('HSET', sizes, name, size)
    redis.call('ZADD', index, now, name)
  end
end
if ttl > 0 and bound > 0 then
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', now - ttl, 'LIMIT', 0, 100)) do drop(name) end
  while tonumber(redis.call('HGET', sizes, '') or 0) > bound do
    local oldest = redis.call('ZRANGE', index, 0, 0)[1]
    if not oldest then break end
    drop(oldest)
  end
  for _, key in ipairs(KEYS) do
    if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
  end
end
return existed
"""
# KEYS: the entry. ARGV: the old and the new value.
_REPLACE = """
local value = redis.call('GET', KEYS[1]) or ''
if value ~= ARGV[1] and value ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
# KEYS: the counters. ARGV: amount, lifetime in seconds and leak of each. Counters leak by the clock of Redis, so that
# its clients need not agree on the time. Numbers are returned as text, since Redis truncates them to integers.
_ADD = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local found = {}
for i, key in ipairs(KEYS) do
  local amount, ttl, leak = tonumber(ARGV[3 * i - 2]), ARGV[3 * i - 1], tonumber(ARGV[3 * i])
  local used, at = string.match(redis.call('GET', key) or '0 0', '(%S+) (%S+)')
  local value = math.max(0, math.max(0, used - math.max(0, now - at) * leak) + amount)
  if amount ~= 0 then redis.call('SET', key, string.format('%.17g %.17g', value, now), 'EX', ttl) end
  found[i] = string.format('%.17g', value)
end
return found
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
        client = self._redis.client
        self._write, self._replace, self._add = map(client.register_script, (_WRITE, _REPLACE, _ADD))

    async def get(self, names: Sequence[str], *, group: str = "", renew: float = 0.0) -> list[bytes | None]:
        if not names:
            return []
        prefix, milliseconds = self._prefix(group), round(renew * 1000)
        pipeline = self._redis.client.pipeline(transaction=False)
        for name in names:
            if renew:
                pipeline.getex(prefix + name, px=milliseconds)
            else:
                pipeline.get(prefix + name)
        if self._max_bytes:
            index, sizes = _index_keys(prefix)
            pipeline.zadd(index, dict.fromkeys(names, _now()), xx=True)
            for key in (index, sizes) if renew else ():
                pipeline.pexpire(key, milliseconds)
        found: list[bytes | None] = await self._run(pipeline.execute())
        return found[: len(names)]

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        if not names:
            return []
        pipeline = self._redis.client.pipeline(transaction=False)
        for name in names:
            pipeline.strlen(self._prefix(group) + name)
        found: list[int] = await self._run(pipeline.execute())
        return found

    async def put(self, values: Mapping[str, bytes], *, ttl: float, group: str = "") -> None:
        await self._change(values, group, milliseconds=max(1, round(ttl * 1000)))

    async def delete(self, names: Sequence[str], *, group: str = "") -> int:
        return await self._change(dict.fromkeys(names, b""), group, milliseconds=0)

    async def _change(self, values: Mapping[str, bytes], group: str, *, milliseconds: int) -> int:
        prefix = self._prefix(group)
        head = (_now(), milliseconds, self._max_bytes, prefix, ENTRY_OVERHEAD_BYTES)
        arguments = [*head, *(part for entry in values.items() for part in entry)]
        return int(await self._run(self._write(keys=_index_keys(prefix), args=arguments)))

    async def replace(self, name: str, old: bytes, new: bytes) -> bool:
        return bool(await self._run(self._replace(keys=[self._prefix("") + name], args=[old, new])))

    async def add(self, changes: Mapping[str, Change]) -> dict[str, float]:
        prefix = self._prefix("")
        arguments = [part for amount, ttl, leak in changes.values() for part in (amount, math.ceil(ttl), leak)]
        totals = await self._run(self._add(keys=[prefix + name for name in changes], args=arguments))
        return dict(zip(changes, map(float, totals), strict=True))

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


def _index_keys(prefix: str) -> list[str]:
    return [f"{prefix}used", f"{prefix}sizes"]


def _now() -> int:
    return round(time.time() * 1000)
