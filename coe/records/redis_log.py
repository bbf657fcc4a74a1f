"""The routing log as one Redis stream, and the feedback beside it, shared by every gateway replica.

Needs Redis 6.2 or newer, or Valkey.
Records are entries of the stream; a sorted set maps each request id to its entry, so that repeated appends add nothing
and `find` reads one entry. There is no index of other fields: a filtered read scans the stream in chunks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from coe.errors import StoreError, UnknownCursor
from coe.records.record import (
    DAY,
    FEEDBACK,
    RECORD,
    Feedback,
    FeedbackPage,
    LogPage,
    LogQuery,
    RoutingRecord,
    dedup_keys,
    events_in_order,
    feedback_page,
    page_size,
    parse_cursor,
    retention_start,
)
from coe.redis import RedisClient

# The braces put the keys of one script into one slot of a Redis cluster.
STREAM, IDS = "coe:records", "{coe:records}:ids"
EVENTS, ORDER = "{coe:feedback}:events", "{coe:feedback}:order"

MAX_SCRIPT_ENTRIES = 100
"""Records or events that one script call appends: some milliseconds in which the server serves no other client."""
MAX_TRIMMED_EVENTS = 1_000
"""Events that one script call removes for their age or number."""
SCAN_CHUNK = 200
"""Entries that one command reads."""
MAX_SCANNED = 10_000
"""Entries that one call of `read` or `back` scans. Callers continue with further calls, and can stop between
them."""
CLOCK_SKEW_MS = 3_600_000
"""Largest difference between the clocks of the gateways and the server."""
EXTRA_IDS = 1_000
"""Ids kept beyond the retention, because the stream is trimmed by whole nodes."""

EPOCH_MS = 1_700_000_000_000
PER_MS = 4_096
"""The score of an id is (milliseconds - EPOCH_MS) * PER_MS + sequence number of its entry. It is exact in a double
until 2093, sorts like the stream, and leads from id to entry without more memory. More than PER_MS records in one
millisecond would get scores that lead to no entry."""

# One step for the server, so an id is stored exactly when its record is, also across a crash with append-only
# persistence. Deletion by age is exact to the record and by the server's clock, because an old record may hold a user's
# prompt.
APPEND = f"""
for i = 4, #ARGV, 2 do
  if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    local key = redis.call('XADD', KEYS[1], '*', 'record', ARGV[i + 1])
    local milliseconds, number = string.match(key, '(%d+)-(%d+)')
    local score = (milliseconds - {EPOCH_MS}) * {PER_MS} + number
    redis.call('ZADD', KEYS[2], string.format('%.0f', score), ARGV[i])
  end
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
local oldest = redis.call('TIME')[1] * 1000 - tonumber(ARGV[3])
if oldest > {EPOCH_MS} then
  redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f-0', oldest))
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('(%.0f', (oldest - {EPOCH_MS}) * {PER_MS}))
end
"""

PUT_EVENTS = """
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
  local old = not parsed or event.time < tonumber(ARGV[3])
  if not old and redis.call('ZCARD', KEYS[2]) <= tonumber(ARGV[1]) then break end
  redis.call('ZREM', KEYS[2], oldest)
  redis.call('HDEL', KEYS[1], oldest)
end
"""


class _RedisStore:
    """Connection and streams of the log, and of the feedback. Each connects on the first call."""

    script: str

    def __init__(self, url: str, *, retention: int, days: float | None) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        options = {"connections": 8, "connect_timeout": 2.0, "timeout": 5.0}
        self._redis = RedisClient(url, key="log.url", error=StoreError, **options)  # type: ignore[arg-type]
        self._append = self._redis.client.register_script(self.script)
        self._retention, self._days = retention, days

    async def aclose(self) -> None:
        await self._redis.aclose()


class RedisLog(_RedisStore):
    """A RoutingLog whose cursor is the stream id.

    A call scans MAX_SCANNED entries at most. So it may return few records or none with a cursor that moved (continue
    from it).
    """

    script = APPEND

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        """Appends the records in order; after a failure the same records may be appended again. Raises StoreError."""
        max_age = math.inf if self._days is None else round(self._days * DAY * 1_000)
        for first in range(0, len(records), MAX_SCRIPT_ENTRIES):
            arguments: list[bytes | str | float] = [self._retention, self._retention + EXTRA_IDS, max_age]
            for record in records[first : first + MAX_SCRIPT_ENTRIES]:
                arguments += (record.request_id, RECORD.encode(record))
            await self._redis.run(self._append(keys=[STREAM, IDS], args=arguments))

    async def read(self, query: LogQuery) -> LogPage:
        page, _, last, _ = await self._scan(query, newest_first=False)
        return LogPage(page.records, last or query.after, page.damaged)

    async def back(self, query: LogQuery) -> LogPage:
        page, first, last, ended = await self._scan(query, newest_first=True)
        return LogPage(page.records, "" if ended else last or query.before, page.damaged, end=first)

    async def find(self, request_id: str) -> RoutingRecord | None:
        score = await self._redis.run(self._redis.client.zscore(IDS, request_id))
        if score is None:
            return None
        since, number = divmod(int(score), PER_MS)
        key = f"{EPOCH_MS + since}-{number}"
        entries = await self._redis.run(self._redis.client.xrange(STREAM, min=key, max=key))
        record = RECORD.decode_or_none(entries[0][1].get(b"record", b"")) if entries else None
        return record if record and record.request_id == request_id else None

    async def _scan(self, query: LogQuery, *, newest_first: bool) -> tuple[LogPage, str, str, bool]:
        """The first matching records, the first and last entry scanned (empty for none), and whether the scan reached
        its end."""
        start, end, client = self._start(query), self._end(query), self._redis.client
        size, records, damaged, first, last = page_size(query.limit), list[RoutingRecord](), 0, "", ""
        for _ in range(0, MAX_SCANNED, SCAN_CHUNK):
            scan = client.xrevrange if newest_first else client.xrange
            ends = (end, start) if newest_first else (start, end)
            entries = await self._redis.run(scan(STREAM, *ends, SCAN_CHUNK))
            for key, fields in entries:
                record = RECORD.decode_or_none(fields.get(b"record", b""))
                if record is not None and query.matches(record):
                    if len(records) == size:
                        return LogPage(tuple(records), last, damaged), first, last, False
                    records.append(record)
                damaged += record is None
                last = key.decode()
                first = first or last
            if len(entries) < SCAN_CHUNK:
                return LogPage(tuple(records), last, damaged), first, last, True
            start, end = (start, f"({last}") if newest_first else (f"({last}", end)
        return LogPage(tuple(records), last, damaged), first, last, False

    def _start(self, query: LogQuery) -> str:
        """Start of the scan: after the cursor, and not before `since`, as no record is appended before its time."""
        since = max(0, int(query.since * 1_000) - CLOCK_SKEW_MS)
        return f"{since}-0" if not query.after or (since, 0) > self._parsed(query.after) else f"({query.after}"

    def _end(self, query: LogQuery) -> str:
        """End of the scan: before the cursor, and not long after `until`."""
        until = math.inf if query.until == math.inf else max(0, int(query.until * 1_000) + CLOCK_SKEW_MS)
        if query.before and (until, 0) >= self._parsed(query.before):
            return f"({query.before}"
        return "+" if until == math.inf else f"{until}-0"

    def _parsed(self, cursor: str) -> tuple[int, int]:
        if not (found := re.fullmatch(r"([0-9]{1,19})-([0-9]{1,19})", cursor)):
            raise UnknownCursor(f"{self._redis.place}: {cursor!r} is not a cursor of this log; start again without one")
        return int(found[1]), int(found[2])


class RedisFeedback(_RedisStore):
    """A FeedbackLog whose cursor is the event's number.

    A hash maps dedup keys to events, and a sorted set orders the keys by a growing number, which is the cursor. One
    script call stores a batch and deletes what is too old or too much.
    """

    script = PUT_EVENTS

    async def append(self, events: Sequence[Feedback]) -> None:
        """Appends the events in order; after a failure the same events may be appended again. Raises StoreError."""
        limits = (self._retention, MAX_TRIMMED_EVENTS, repr(retention_start(self._days)))
        for first in range(0, len(events), MAX_SCRIPT_ENTRIES):
            arguments: list[bytes | str | int] = [*limits]
            for event in events[first : first + MAX_SCRIPT_ENTRIES]:
                arguments += (event.dedup_key, event.event_id, repr(float(event.time)), FEEDBACK.encode(event))
            await self._redis.run(self._append(keys=[EVENTS, ORDER], args=arguments))

    async def read(self, *, after: str = "", limit: int = 1_000) -> FeedbackPage:
        start, size, client = parse_cursor(after, place=self._redis.place), page_size(limit), self._redis.client
        command = client.zrangebyscore(ORDER, f"({start}", "+inf", start=0, num=size, withscores=True)
        if not (keys := await self._redis.run(command)):
            return FeedbackPage((), after)
        lines = await self._redis.run(client.hmget(EVENTS, [key for key, _ in keys]))
        return feedback_page(lines, cursor=str(int(keys[-1][1])))

    async def for_request(self, request_id: str, *, keys: Iterable[str | None]) -> tuple[Feedback, ...]:
        wanted = dedup_keys(request_id, keys)
        return events_in_order(await self._redis.run(self._redis.client.hmget(EVENTS, wanted)) if wanted else ())
