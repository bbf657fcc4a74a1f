"""Feedback in the Redis of the routing log.

A hash maps dedup keys to events, and a sorted set orders the keys by a growing number, which is the cursor. One script
call stores a batch and deletes what is too old or too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coe.records.feedback import (
    Feedback,
    FeedbackPage,
    decode_in_order,
    decode_page,
    dedup_key,
    dedup_keys,
    encode_event,
)
from coe.records.redis_log import log_client
from coe.records.selection import page_size, parse_cursor, retention_start

# The braces put both keys into one slot of a Redis cluster.
EVENTS, ORDER = "{coe:feedback}:events", "{coe:feedback}:order"
MAX_SCRIPT_EVENTS = 500
"""Events of one script call."""
MAX_TRIMMED_EVENTS = 1_000
"""Events that one script call removes for their age or number."""

PUT = """
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local number = tonumber(last[2] or '0')
for i = 4, #ARGV, 4 do
  local key, id, time = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local known = redis.call('HGET', KEYS[1], key)
  local newer = true
  if known then
    local parsed, old = pcall(cjson.decode, known)
    newer = not parsed or id ~= old.event_id and (time > old.time or (time == old.time and id > old.event_id))
  end
  if newer then
    number = number + 1
    redis.call('HSET', KEYS[1], key, ARGV[i + 3])
    redis.call('ZADD', KEYS[2], string.format('%.0f', number), key)
  end
end
for _ = 1, tonumber(ARGV[2]) do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then break end
  local parsed, event = pcall(cjson.decode, redis.call('HGET', KEYS[1], oldest))
  if parsed and event.time >= tonumber(ARGV[3]) then break end
  redis.call('ZREM', KEYS[2], oldest)
  redis.call('HDEL', KEYS[1], oldest)
end
local excess = math.min(redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[1]), tonumber(ARGV[2]))
if excess > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[2], excess)
  for i = 1, #oldest, 2 do redis.call('HDEL', KEYS[1], oldest[i]) end
end
"""


class RedisFeedback:
    """A FeedbackLog whose cursor is the event's number. It connects on the first call."""

    def __init__(self, url: str, *, retention: int, days: float | None) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._redis = log_client(url)
        self._put = self._redis.client.register_script(PUT)
        self._retention, self._days = retention, days

    async def append(self, events: Sequence[Feedback]) -> None:
        """Appends the events in order; after a failure the same events may be appended again. Raises LogError."""
        for first in range(0, len(events), MAX_SCRIPT_EVENTS):
            arguments: list[bytes | str | int] = [
                self._retention,
                MAX_TRIMMED_EVENTS,
                repr(retention_start(self._days)),
            ]
            for event in events[first : first + MAX_SCRIPT_EVENTS]:
                arguments += (dedup_key(event), event.event_id, repr(float(event.time)), encode_event(event))
            await self._redis.run(self._put(keys=[EVENTS, ORDER], args=arguments))

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        start, size, client = parse_cursor(after, place=self._redis.place), page_size(limit), self._redis.client
        if not size:
            return FeedbackPage((), after)
        command = client.zrangebyscore(ORDER, f"({start}", "+inf", start=0, num=size, withscores=True)
        found = await self._redis.run(command)
        if not found:
            return FeedbackPage((), after)
        lines = await self._redis.run(client.hmget(EVENTS, [dedup_key for dedup_key, _ in found]))
        return decode_page((line for line in lines if line is not None), cursor=str(int(found[-1][1])))

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        wanted = dedup_keys(request_id, keys)
        lines = await self._redis.run(self._redis.client.hmget(EVENTS, wanted)) if wanted else ()
        return decode_in_order(line for line in lines if line is not None)

    async def aclose(self) -> None:
        await self._redis.aclose()
