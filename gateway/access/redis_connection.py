"""The bounded way to the Redis that counts for all gateways.

The one step in which Redis changes what a key has left: all that is asked for is there, or nothing is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from coe.redis import place_of, redis_pool

if TYPE_CHECKING:
    from redis.asyncio import Redis


# KEYS: the key's levels (hash), its slots by gateway (hash). ARGV: the gateway, how long its slots are its own without
# another word (seconds), then seven a meter:
#   kind (bucket, window, slots) · name · limit · number of the window
#   back: what comes back first, negative for a debt; for slots, how many the gateway holds now
#   least, most: what must be there, or nothing is taken from any; what is taken if it is there
# Returns the first meter that lacks its least (0: none), then for each what was taken and what is left.
# Levels are floats; Redis would cut returned numbers to whole ones, so they go back as text.
# A bucket refills by the server's clock, so gateways need not agree on the time; only windows are theirs to name.
TAKE = """
local function text(number) return string.format('%.17g', number) end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local gateway, lease = ARGV[1], tonumber(ARGV[2])
local meters, lacking = {}, 0
for p = 3, #ARGV, 7 do
  local m = {kind = ARGV[p], name = ARGV[p + 1], limit = tonumber(ARGV[p + 2]), window = tonumber(ARGV[p + 3]),
    back = tonumber(ARGV[p + 4]), least = tonumber(ARGV[p + 5]), most = tonumber(ARGV[p + 6])}
  if m.kind == 'bucket' then
    local kept = redis.call('HMGET', KEYS[1], m.name, m.name .. ':at')
    local level = tonumber(kept[1] or m.limit) + math.max(0, now - tonumber(kept[2] or now)) * m.limit / 60
    m.left = math.min(m.limit, math.min(m.limit, level) + m.back)
  elseif m.kind == 'window' then
    local kept = redis.call('HMGET', KEYS[1], m.name, m.name .. ':window')
    local spent, window = tonumber(kept[1] or 0), tonumber(kept[2] or m.window)
    if window < m.window then spent, window = 0, m.window end
    m.window = window
    m.left = m.limit - math.max(0, spent - m.back)
  else
    local held = redis.call('HGETALL', KEYS[2])
    m.left = m.limit - m.back
    for i = 1, #held, 2 do
      local count, ends = string.match(held[i + 1], '^(.-):(.+)$')
      if tonumber(ends) < now then redis.call('HDEL', KEYS[2], held[i])
      elseif held[i] ~= gateway then m.left = m.left - tonumber(count) end
    end
  end
  meters[#meters + 1] = m
  if lacking == 0 and m.least > 0 and m.left + m.limit * 1e-9 < m.least then lacking = #meters end
end
local answer = {text(lacking)}
for _, m in ipairs(meters) do
  local taken = 0
  if lacking == 0 then taken = math.max(m.least, math.min(m.most, m.left)) end
  m.left = m.left - taken
  if m.kind == 'bucket' then
    redis.call('HSET', KEYS[1], m.name, text(m.left), m.name .. ':at', text(now))
  elseif m.kind == 'window' then
    redis.call('HSET', KEYS[1], m.name, text(m.limit - m.left), m.name .. ':window', text(m.window))
  elseif m.back + taken > 0 then
    redis.call('HSET', KEYS[2], gateway, text(m.back + taken) .. ':' .. text(now + lease))
    redis.call('EXPIRE', KEYS[2], math.ceil(lease))
  else
    redis.call('HDEL', KEYS[2], gateway)
  end
  answer[#answer + 1] = text(taken)
  answer[#answer + 1] = text(m.left)
end
redis.call('EXPIRE', KEYS[1], 3456000)
return answer
"""


ANSWER = 0.2
"""Seconds for one step, connecting included; a request waits for it."""
GRACE = 0.05
"""More seconds for an answer that is there and was not read, since the process itself was held up."""
CONNECTIONS = 8


def client_of(url: str) -> Redis:
    """A client without time limits of its own: whoever asks sets one. Nothing is connected before the first command.
    Raises ConfigError when `url` cannot be a Redis address."""
    from redis.asyncio import Redis

    pool = redis_pool(
        url, key="access.counters", connections=CONNECTIONS, connect=None, answer=None, retries=0
    )  # what may have been done must not be done twice
    return Redis(connection_pool=pool)


class RedisUnavailable(Exception):
    """Redis did not answer in time, or not as it should."""


class LimitsRedis:
    """Nothing is connected before the first step."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._client = client_of(url)
        self.place = place_of(self._client.connection_pool)
        self._take = self._client.register_script(TAKE)

    async def take(self, key: str, arguments: Sequence[str | float]) -> list[float]:
        """One step for the API key named `key`. Raises AwayError."""
        levels = f"coe:use:{{{key}}}"  # the braces put both keys into one slot of a Redis cluster
        step = asyncio.ensure_future(self._take(keys=[levels, f"{levels}:slots"], args=arguments))
        try:
            for seconds in (ANSWER, GRACE):
                await asyncio.wait((step,), timeout=seconds)
                if step.done():
                    return [float(number) for number in step.result()]
        except Exception as error:  # whatever the client library has: no request fails for the sake of counting
            raise RedisUnavailable(f"{type(error).__name__}: {error}") from error
        finally:
            step.cancel()
        raise RedisUnavailable(f"no answer within {ANSWER + GRACE:g} s")

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()
