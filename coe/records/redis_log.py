"""The routing log as one Redis stream, and the feedback beside it, shared by every gateway replica.

Needs Redis 6.2 or newer, or Valkey.
Records are entries of the stream; a sorted set maps each request id to its entry, so that repeated appends add nothing
and `find` reads one entry. There is no index of other fields: a filtered read scans the stream in chunks, in a script
that compares bytes on the server, so that only probable matches are sent. Every script call is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson

from coe.errors import StoreError, UnknownCursor
from coe.records.codec import decode_or_none, encode
from coe.records.feedback import (
    Feedback,
    FeedbackPage,
    decode_in_order,
    decode_page,
    dedup_key,
    dedup_keys,
    encode_event,
)
from coe.records.record import LogPage, LogQuery, RoutingRecord
from coe.records.selection import DAY, exact_filters, has_filters, matches, page_size, parse_cursor, retention_start
from coe.redis import RedisClient

STREAM = "coe:records"
IDS = "{coe:records}:ids"
"""Request ids by entry. The braces put the key into the stream's slot of a Redis cluster."""

CONNECT_TIMEOUT_SECONDS = 2.0
TIMEOUT_SECONDS = 5.0
MAX_CONNECTIONS = 8
MAX_SCRIPT_RECORDS = 500
"""Records that one script call appends: some milliseconds in which the server serves no other client."""
MAX_SCRIPT_BYTES = 4_000_000
"""Bytes of these records; the bound matters where prompts are stored."""
SCAN_CHUNK = 200
"""Entries that one script call scans: one or two milliseconds of the server."""
MAX_SCANNED = 50_000
"""Entries that one call of `read` or `tail` scans."""
MAX_SCANNED_BACK = 10_000
"""Entries that one call of `back` scans. Callers continue with further calls, and can stop between them."""
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
# persistence.
APPEND = f"""
for i = 3, #ARGV, 2 do
  if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    local key = redis.call('XADD', KEYS[1], '*', 'record', ARGV[i + 1])
    local milliseconds, number = string.match(key, '(%d+)-(%d+)')
    local score = (milliseconds - {EPOCH_MS}) * {PER_MS} + number
    redis.call('ZADD', KEYS[2], string.format('%.0f', score), ARGV[i])
  end
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
"""

# Exact to the record and by the server's clock, because an old record may hold a user's prompt.
DELETE_OLD = f"""
local now = redis.call('TIME')
local oldest = now[1] * 1000 - tonumber(ARGV[1])
if oldest > {EPOCH_MS} then
  redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f-0', oldest))
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('(%.0f', (oldest - {EPOCH_MS}) * {PER_MS}))
end
"""

# Records are lines of CoE's own JSON, so fields are compared as bytes; the caller compares again after parsing. A line
# whose time cannot be read is sent to the caller too.
SCAN = """
local since, until_ = tonumber(ARGV[5]), tonumber(ARGV[6])
local entries = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
local found = {#entries, '', ''}
if #entries > 0 then found[2], found[3] = entries[1][1], entries[#entries][1] end
for _, entry in ipairs(entries) do
  local record = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'record' then record = entry[2][i + 1] end
  end
  local wanted = true
  if since or until_ then
    local time = tonumber(string.match(record, '"time":([%d.eE+-]+)') or '')
    wanted = not time or (not since or time >= since) and (not until_ or time <= until_)
  end
  for i = 7, #ARGV do
    if not wanted then break end
    wanted = string.find(record, ARGV[i], 1, true)
  end
  if wanted then
    found[#found + 1] = entry[1]
    found[#found + 1] = record
  end
end
return found
"""


@dataclass(frozen=True, slots=True)
class ScannedChunk:
    """Reply of the SCAN script: the number of entries scanned, the ids of the first and last, and probable matches."""

    count: int
    first: str
    last: str
    entries: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class StreamScan:
    """Result of a scan: matching records, the ids of the first and last entry scanned (empty for none), the number of
    damaged entries, and whether the scan reached its end."""

    records: tuple[RoutingRecord, ...]
    first: str
    last: str
    damaged: int
    ended: bool


def log_client(url: str) -> RedisClient:
    """The client for the Redis of the routing log and its feedback; its errors are StoreErrors. Raises ConfigError."""
    return RedisClient(
        url,
        key="log.url",
        error=StoreError,
        connections=MAX_CONNECTIONS,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        timeout=TIMEOUT_SECONDS,
    )


class RedisLog:
    """A RoutingLog whose cursor is the stream id. It connects on the first call.

    A filtered call scans MAX_SCANNED entries at most. So `read` may return few records or none with a cursor that moved
    (read again from it), and `tail` finds only records that are that near to the end.
    """

    def __init__(self, url: str, *, retention: int, days: float | None) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._redis = log_client(url)
        self._append = self._redis.client.register_script(APPEND)
        self._delete_old = self._redis.client.register_script(DELETE_OLD)
        self._scan_script = self._redis.client.register_script(SCAN)
        self._retention, self._days = retention, days

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        """Appends the records in order; after a failure the same records may be appended again. Raises StoreError."""
        for batch in _batches(records):
            sizes = (self._retention, self._retention + EXTRA_IDS)
            await self._redis.run(self._append(keys=[STREAM, IDS], args=[*sizes, *batch]))
        if records and self._days is not None:
            max_age_ms = round(self._days * DAY * 1_000)
            await self._redis.run(self._delete_old(keys=[STREAM, IDS], args=[max_age_ms]))

    async def read(self, query: LogQuery) -> LogPage:
        size = page_size(query.limit)
        if not size:
            return LogPage((), query.after)
        scan = await self._scan(query, size, newest_first=False, max_scanned=MAX_SCANNED)
        return LogPage(scan.records, scan.last or query.after, scan.damaged)

    async def tail(self, query: LogQuery) -> LogPage:
        scan = await self._scan(query, page_size(query.limit), newest_first=True, max_scanned=MAX_SCANNED)
        return LogPage(scan.records[::-1], scan.first or query.after, scan.damaged)

    async def back(self, query: LogQuery) -> LogPage:
        size = page_size(query.limit)
        if not size:
            return LogPage((), query.before)
        scan = await self._scan(query, size, newest_first=True, max_scanned=MAX_SCANNED_BACK)
        return LogPage(scan.records, "" if scan.ended else scan.last, scan.damaged)

    async def find(self, request_id: str) -> RoutingRecord | None:
        score = await self._redis.run(self._redis.client.zscore(IDS, request_id))
        if score is None:
            return None
        key = _stream_id(int(score))
        for _, fields in await self._redis.run(self._redis.client.xrange(STREAM, min=key, max=key)):
            record = decode_or_none(fields.get(b"record", b""))
            if record and record.request_id == request_id:
                return record
        return None

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _scan(self, query: LogQuery, size: int, *, newest_first: bool, max_scanned: int) -> StreamScan:
        """Finds the first `size` matching records between the query's cursors among `max_scanned` entries."""
        found, first, last, damaged = list[RoutingRecord](), "", "", 0
        last_found = "", 0
        start, end = self._start(query), self._end(query)
        chunk_size = SCAN_CHUNK if has_filters(query) else min(SCAN_CHUNK, size + 1)
        for _ in range(0, max_scanned, chunk_size):
            chunk = await self._scan_chunk(query, start, end, count=chunk_size, newest_first=newest_first)
            first, last = first or chunk.first, chunk.last or last
            for key, line in chunk.entries:
                record = decode_or_none(line)
                damaged += record is None
                if record is None or not matches(record, query):
                    continue
                if len(found) == size:
                    return StreamScan(tuple(found), first, *last_found, ended=False)
                found.append(record)
                last_found = key, damaged
            if chunk.count < chunk_size:
                return StreamScan(tuple(found), first, last, damaged, ended=True)
            edge = "(" + last
            start, end = (start, edge) if newest_first else (edge, end)
        return StreamScan(tuple(found), first, last, damaged, ended=False)

    async def _scan_chunk(
        self, query: LogQuery, start: str, end: str, *, count: int, newest_first: bool
    ) -> ScannedChunk:
        command = ("XREVRANGE", end, start) if newest_first else ("XRANGE", start, end)
        reply = self._scan_script(keys=[STREAM], args=[*command, count, *_scan_conditions(query)])
        found, first, last, *flat = await self._redis.run(reply)
        entries = tuple((key.decode(), line) for key, line in zip(flat[::2], flat[1::2], strict=True))
        return ScannedChunk(int(found), first.decode(), last.decode(), entries)

    def _start(self, query: LogQuery) -> str:
        """Start of the scan: after the cursor, and not before `since`, as no record is appended before its time."""
        since = f"{max(0, int(query.since * 1_000) - CLOCK_SKEW_MS)}-0"
        if not query.after:
            return since
        after = self._checked_cursor(query.after)
        return since if _order(since) > _order(after) else "(" + after

    def _end(self, query: LogQuery) -> str:
        """End of the scan: before the cursor, and not long after `until`."""
        until = "+" if query.until == math.inf else f"{max(0, int(query.until * 1_000) + CLOCK_SKEW_MS)}-0"
        if not query.before:
            return until
        before = self._checked_cursor(query.before)
        return until if until != "+" and _order(until) < _order(before) else "(" + before

    def _checked_cursor(self, cursor: str) -> str:
        if not re.fullmatch(r"\d{1,19}-\d{1,19}", cursor):
            raise UnknownCursor(f"{self._redis.place}: {cursor!r} is not a cursor of this log; start again without one")
        return cursor


def _scan_conditions(query: LogQuery) -> list[str | bytes]:
    """The arguments of SCAN from the fifth one."""
    since = repr(query.since) if query.since else ""
    until = repr(query.until) if query.until < math.inf else ""
    patterns = [_pattern(name, value) for name, value in exact_filters(query).items()]
    if query.request_id:
        patterns.append(_pattern("request_id", query.request_id)[:-1])  # a prefix: without the closing quote
    return [since, until, *patterns]


def _pattern(name: str, value: str) -> bytes:
    """The bytes of a field with this value in a record."""
    return orjson.dumps({name: value.encode("utf-8", "replace").decode()})[1:-1]


def _order(key: str) -> tuple[int, int]:
    milliseconds, _, number = key.partition("-")
    return int(milliseconds), int(number)


def _stream_id(score: int) -> str:
    """The stream id that a score encodes."""
    since, number = divmod(score, PER_MS)
    return f"{EPOCH_MS + since}-{number}"


def _batches(records: Sequence[RoutingRecord]) -> Iterator[list[str | bytes]]:
    """Arguments for one call of APPEND each: alternating ids and lines."""
    batch, size = list[str | bytes](), 0
    for record in records:
        line = encode(record)
        if batch and (len(batch) == 2 * MAX_SCRIPT_RECORDS or size + len(line) > MAX_SCRIPT_BYTES):
            yield batch
            batch, size = [], 0
        batch += (record.request_id, line)
        size += len(line)
    if batch:
        yield batch


# The braces put both keys into one slot of a Redis cluster.
EVENTS, ORDER = "{coe:feedback}:events", "{coe:feedback}:order"
MAX_SCRIPT_EVENTS = 500
"""Events of one script call."""
MAX_TRIMMED_EVENTS = 1_000
"""Events that one script call removes for their age or number."""

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
    """A FeedbackLog whose cursor is the event's number. It connects on the first call.

    A hash maps dedup keys to events, and a sorted set orders the keys by a growing number, which is the cursor. One
    script call stores a batch and deletes what is too old or too much.
    """

    def __init__(self, url: str, *, retention: int, days: float | None) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._redis = log_client(url)
        self._put = self._redis.client.register_script(PUT_EVENTS)
        self._retention, self._days = retention, days

    async def append(self, events: Sequence[Feedback]) -> None:
        """Appends the events in order; after a failure the same events may be appended again. Raises StoreError."""
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
