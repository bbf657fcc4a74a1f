"""Feedback in the Redis of the routing log: events by slot, and the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coe.records.connection import LogRedis
from coe.records.feedback import Feedback, FeedbackPage, encode, in_order, page, slot, slots
from coe.records.selection import oldest_kept, page_size, position

EVENTS, ORDER = "{coe:feedback}:events", "{coe:feedback}:order"
"""A hash of the events, and their slots by the number of each. The braces keep both in one slot of a Redis cluster."""
SCRIPT = 500  # events in one script call
TRIMMED = 1_000  # and those that it removes for their age or their number, at most

PUT = """
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local number = tonumber(last[2] or '0')
for i = 4, #ARGV, 4 do
  local slot, id, time = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local known = redis.call('HGET', KEYS[1], slot)
  local newer = true
  if known then
    local whole, old = pcall(cjson.decode, known)
    newer = not whole or id ~= old.event_id and (time > old.time or (time == old.time and id > old.event_id))
  end
  if newer then
    number = number + 1
    redis.call('HSET', KEYS[1], slot, ARGV[i + 3])
    redis.call('ZADD', KEYS[2], string.format('%.0f', number), slot)
  end
end
for _ = 1, tonumber(ARGV[2]) do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then break end
  local whole, event = pcall(cjson.decode, redis.call('HGET', KEYS[1], oldest))
  if whole and event.time >= tonumber(ARGV[3]) then break end
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
    """A FeedbackLog whose cursor is the event's number. Nothing is connected before the first call."""

    def __init__(self, url: str, *, retention: int, days: float | None) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._redis = LogRedis(url)
        self._put = self._redis.client.register_script(PUT)
        self._retention, self._days = retention, days

    async def append(self, events: Sequence[Feedback]) -> None:
        """Add the events in order; what a failure leaves unsaid may be appended again. Raises LogError."""
        for first in range(0, len(events), SCRIPT):
            arguments: list[bytes | str | int] = [self._retention, TRIMMED, repr(oldest_kept(self._days))]
            for event in events[first : first + SCRIPT]:
                arguments += (slot(event), event.event_id, repr(float(event.time)), encode(event))
            await self._redis.answer(self._put(keys=[EVENTS, ORDER], args=arguments))

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        """The next events after the cursor. Raises LogError."""
        start, size, client = position(after, place=self._redis.place), page_size(limit), self._redis.client
        if not size:
            return FeedbackPage((), after)
        command = client.zrangebyscore(ORDER, f"({start}", "+inf", start=0, num=size, withscores=True)
        found = await self._redis.answer(command)
        if not found:
            return FeedbackPage((), after)
        lines = await self._redis.answer(client.hmget(EVENTS, [slot for slot, _ in found]))
        return page((line for line in lines if line is not None), cursor=str(int(found[-1][1])))

    async def about(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        """What those keys said of the request. Raises LogError."""
        wanted = slots(request_id, keys)
        lines = await self._redis.answer(self._redis.client.hmget(EVENTS, wanted)) if wanted else ()
        return in_order(line for line in lines if line is not None)

    async def aclose(self) -> None:
        await self._redis.aclose()
