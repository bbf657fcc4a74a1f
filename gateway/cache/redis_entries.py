"""Entries in Redis with a lifetime and a bound on their total size. Needs Redis 6.2 or newer, or Valkey.

Scripts keep the total size of a group exact and delete its least recently used entries. The answer cache and the stored
responses use them; each bounds the time of its commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coe.redis import RedisClient
from gateway.cache.memory import ENTRY_OVERHEAD_BYTES

# KEYS: the entry, the index, the sizes. ARGV: the entry's name in the index, and the shortest remaining lifetime
# in milliseconds (0: unchanged).
_GET = """
local value, ttl = redis.call('GET', KEYS[1]), tonumber(ARGV[2])
if value then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[2], 'XX', time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
  if ttl > 0 then
    for _, key in ipairs(KEYS) do
      if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
    end
  end
end
return value
"""
# KEYS: the entry, the index, the sizes. ARGV: the entry's name, its value, its size, milliseconds to live, the largest
# total size, the prefix of entries. Entries unused for longer than `ttl` have already expired: at
# most 100 of them leave the index at a time.
_PUT = """
local time = redis.call('TIME')
local now, ttl = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[4])
local function delete(name)
  redis.call('DEL', ARGV[6] .. name)
  redis.call('ZREM', KEYS[2], name)
  local size = redis.call('HGET', KEYS[3], name)
  if size then
    redis.call('HDEL', KEYS[3], name)
    redis.call('HINCRBY', KEYS[3], 'total', -tonumber(size))
  end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ttl, 'LIMIT', 0, 100)) do delete(name) end
delete(ARGV[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ttl)
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
local total = redis.call('HINCRBY', KEYS[3], 'total', ARGV[3])
while total > tonumber(ARGV[5]) do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then break end
  delete(oldest)
  total = tonumber(redis.call('HGET', KEYS[3], 'total'))
end
for _, key in ipairs({KEYS[2], KEYS[3]}) do
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, ttl) end
end
"""
# KEYS: the entry, the index, the sizes. ARGV: the entry's name. Returns how many there were.
_DELETE = """
local size = redis.call('HGET', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if size then
  redis.call('HDEL', KEYS[3], ARGV[1])
  redis.call('HINCRBY', KEYS[3], 'total', -tonumber(size))
end
return redis.call('DEL', KEYS[1])
"""


class RedisEntries:
    """The entries of one feature (answer cache or stored responses), with `space` in their keys.

    All entries of a group together have at most `max_bytes`, with ENTRY_OVERHEAD_BYTES each. The methods raise the
    error of `redis`, and do not bound their time."""

    def __init__(self, redis: RedisClient, space: str, max_bytes: int) -> None:
        self._redis = redis
        self._space = space
        self._max_bytes = max_bytes
        self._get, self._put, self._delete = map(redis.client.register_script, (_GET, _PUT, _DELETE))

    async def get(self, names: Sequence[str], *, group: str = "", ttl: float = 0) -> list[bytes | None]:
        """Returns the values, None for those that are not there. With `ttl`, the remaining lifetime of
        found entries is raised to at least `ttl` seconds."""
        if len(names) == 1:
            keys = self._keys(names[0], group)
            return [await self._redis.run(self._get(keys=keys, args=[names[0], round(ttl * 1000)]))]
        pipeline = self._redis.client.pipeline(transaction=False)
        for name in names:
            await self._get(keys=self._keys(name, group), args=[name, round(ttl * 1000)], client=pipeline)
        found: list[bytes | None] = await self._redis.run(pipeline.execute())
        return found

    async def sizes(self, names: Sequence[str], *, group: str = "") -> list[int]:
        """Returns the bytes of each value, 0 for those that are not there."""
        pipeline = self._redis.client.pipeline(transaction=False)
        for name in names:
            pipeline.strlen(self._keys(name, group)[0])
        found: list[int] = await self._redis.run(pipeline.execute())
        return found

    async def put(self, name: str, value: bytes, *, ttl: float, group: str = "") -> None:
        """Stores a value for `ttl` seconds, and deletes others of the group if there is no room."""
        size = len(value) + ENTRY_OVERHEAD_BYTES
        prefix = self.prefix(group)
        arguments: list[Any] = [name, value, size, max(1, round(ttl * 1000)), self._max_bytes, prefix]
        await self._redis.run(self._put(keys=self._keys(name, group), args=arguments))

    async def delete(self, name: str, *, group: str = "") -> bool:
        """Deletes an entry. Returns whether it existed."""
        return bool(await self._redis.run(self._delete(keys=self._keys(name, group), args=[name])))

    def prefix(self, group: str = "") -> str:
        """Begins all keys of a group. The braces put them into one slot of a Redis cluster, the number is the version
        of the format."""
        return f"coe:{{{self._space}{group}}}:1:"

    def _keys(self, name: str, group: str) -> list[str]:
        prefix = self.prefix(group)
        return [prefix + name, f"{prefix}used", f"{prefix}sizes"]
