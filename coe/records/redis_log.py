"""The routing log as one Redis stream, shared by every gateway replica. Needs Redis 6.2 or newer, or Valkey.

Looking through a stream for what a LogQuery selects: the server leaves out most of what is not wanted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from coe.errors import UnknownCursor
from coe.records.codec import encode, intact
from coe.records.connection import LogRedis
from coe.records.record import LogPage, LogQuery, RoutingRecord
from coe.records.selection import DAY, filters, matches, named, page_size

# Records are lines of our own JSON, so what a field must be is found as bytes; the caller looks again at what is left.
# A line whose time cannot be read is left to the caller too.
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
class Looked:
    """One answer of the script: how many entries it went past, the first and the last of them, and what it let
    through."""

    count: int
    first: str
    last: str
    entries: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Walked:
    """What was found on the way from `first` to `last` (ids, empty where there was nothing), how many entries there
    were damaged, and whether the walk came to its end."""

    records: tuple[RoutingRecord, ...]
    first: str
    last: str
    damaged: int
    ended: bool


def conditions(query: LogQuery) -> list[str | bytes]:
    """The script's arguments from the fifth on."""
    since = repr(query.since) if query.since else ""
    deadline = repr(query.deadline) if query.deadline < math.inf else ""
    needles = [_needle(name, value) for name, value in named(query).items()]
    if query.request_id:
        needles.append(_needle("request_id", query.request_id)[:-1])  # without the closing quote
    return [since, deadline, *needles]


def _needle(name: str, value: str) -> bytes:
    """How a record says that."""
    return orjson.dumps({name: value.encode("utf-8", "replace").decode()})[1:-1]


STREAM = "coe:records"
IDS = "{coe:records}:ids"
"""Request ids in the order they came. The braces put it into the stream's slot of a Redis cluster."""

SCRIPT = 500  # records in one script call: some milliseconds in which the server serves nobody else
SCRIPT_BYTES = 4_000_000  # and their size, which matters where prompts are kept
CHUNK = 200  # entries looked at in one script call while filtering: one or two milliseconds of the server's
SCANNED = 50_000  # entries one call looks at, at most
BACK = 10_000  # and one of `back`, whose callers go on by themselves and may want to stop
SKEW_MS = 3_600_000  # how far the gateways' clocks and the server's may differ

EPOCH_MS = 1_700_000_000_000
PER_MS = 4_096
# A request id's score is (milliseconds - EPOCH_MS) * PER_MS + number of its record's stream id: exact in a double until
# 2093, in the order of the stream, and the way from id to record that costs no memory. Earlier versions counted from 1:
# such scores are below all of these and lead nowhere. So would one of more than PER_MS records in a millisecond.

# One step for the server, so an id is remembered exactly when its record was added, also across a crash with
# append-only persistence. Ids outlive their records a little: the stream is trimmed by whole nodes.
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
ID_SLACK = 1_000
# By the server's clock, and to the record: what is too old may be somebody's prompt. It runs beside APPEND, not in it,
# so that the ids that an earlier CoE left (below FIRST) stay until they are too many.
FORGET = f"""
local now = redis.call('TIME')
local oldest = now[1] * 1000 - tonumber(ARGV[1])
if oldest > {EPOCH_MS} then
  redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f-0', oldest))
  redis.call('ZREMRANGEBYSCORE', KEYS[2], ARGV[2], string.format('(%.0f', (oldest - {EPOCH_MS}) * {PER_MS}))
end
"""
FIRST = 10**12


class RedisLog:
    """A RoutingLog whose cursor is the stream id. Nothing is connected before the first call.

    There is no index: a filtered call looks at SCANNED entries at most, so `read` may return few records or none with a
    cursor that moved on (read again from it), and `tail` finds only what is that near to the end.
    """

    def __init__(self, url: str, *, retention: int, days: float | None) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._redis = LogRedis(url)
        self._append = self._redis.client.register_script(APPEND)
        self._forget = self._redis.client.register_script(FORGET)
        self._scan = self._redis.client.register_script(SCAN)
        self._retention, self._days = retention, days

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        """Add the records in order; what a failure leaves unsaid may be appended again. Raises LogError."""
        for arguments in _batches(records):
            sizes = (self._retention, self._retention + ID_SLACK)
            await self._redis.answer(self._append(keys=[STREAM, IDS], args=[*sizes, *arguments]))
        if records and self._days is not None:
            age = round(self._days * DAY * 1_000)
            await self._redis.answer(self._forget(keys=[STREAM, IDS], args=[age, FIRST]))

    async def read(self, query: LogQuery) -> LogPage:
        """The next matching records after the cursor. Raises LogError."""
        size = page_size(query.limit)
        if not size:
            return LogPage((), query.after)
        walked = await self._walk(query, size, newest_first=False)
        return LogPage(walked.records, walked.last or query.after, walked.damaged)

    async def tail(self, query: LogQuery) -> LogPage:
        """The newest matching records; the cursor is the end of the log, for reading on from there. Raises LogError."""
        walked = await self._walk(query, page_size(query.limit), newest_first=True)
        return LogPage(walked.records[::-1], walked.first or query.after, walked.damaged)

    async def back(self, query: LogQuery) -> LogPage:
        """The matching records before the cursor, newest first. Raises LogError."""
        size = page_size(query.limit)
        if not size:
            return LogPage((), query.before)
        walked = await self._walk(query, size, newest_first=True, scanned=BACK)
        return LogPage(walked.records, "" if walked.ended else walked.last, walked.damaged)

    async def find(self, request_id: str) -> RoutingRecord | None:
        """The record of that id; None too for one that an earlier CoE appended. Raises LogError."""
        score = await self._redis.answer(self._redis.client.zscore(IDS, request_id))
        if score is None or score < 0:
            return None
        key = _key(int(score))
        for _, fields in await self._redis.answer(self._redis.client.xrange(STREAM, min=key, max=key)):
            record = intact(fields.get(b"record", b""))
            if record and record.request_id == request_id:
                return record
        return None

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _walk(self, query: LogQuery, size: int, *, newest_first: bool, scanned: int | None = None) -> Walked:
        """The first `size` matching records between the query's cursors, `scanned` entries looked at at most."""
        found, first, last, damaged = list[RoutingRecord](), "", "", 0
        kept = "", 0
        start, end = self._start(query), self._end(query)
        chunk = CHUNK if filters(query) else min(CHUNK, size + 1)
        for _ in range(0, scanned or SCANNED, chunk):
            looked = await self._look(query, start, end, count=chunk, newest_first=newest_first)
            first, last = first or looked.first, looked.last or last
            for key, line in looked.entries:
                record = intact(line)
                damaged += record is None
                if record is None or not matches(record, query):
                    continue
                if len(found) == size:
                    return Walked(tuple(found), first, *kept, ended=False)
                found.append(record)
                kept = key, damaged
            if looked.count < chunk:
                return Walked(tuple(found), first, last, damaged, ended=True)
            edge = "(" + last
            start, end = (start, edge) if newest_first else (edge, end)
        return Walked(tuple(found), first, last, damaged, ended=False)

    async def _look(self, query: LogQuery, start: str, end: str, *, count: int, newest_first: bool) -> Looked:
        way = ("XREVRANGE", end, start) if newest_first else ("XRANGE", start, end)
        answer = self._scan(keys=[STREAM], args=[*way, count, *conditions(query)])
        found, first, last, *flat = await self._redis.answer(answer)
        entries = tuple((key.decode(), line) for key, line in zip(flat[::2], flat[1::2], strict=True))
        return Looked(int(found), first.decode(), last.decode(), entries)

    def _start(self, query: LogQuery) -> str:
        """Where the walk begins: after the cursor, and not before `since`, as no record is appended before its time."""
        since = f"{max(0, int(query.since * 1_000) - SKEW_MS)}-0"
        if not query.after:
            return since
        after = self._cursor(query.after)
        return since if _order(since) > _order(after) else "(" + after

    def _end(self, query: LogQuery) -> str:
        """Where it ends: before the cursor, and not long after `deadline`."""
        deadline = "+" if query.deadline == math.inf else f"{max(0, int(query.deadline * 1_000) + SKEW_MS)}-0"
        if not query.before:
            return deadline
        before = self._cursor(query.before)
        return deadline if deadline != "+" and _order(deadline) < _order(before) else "(" + before

    def _cursor(self, cursor: str) -> str:
        if not re.fullmatch(r"\d{1,19}-\d{1,19}", cursor):
            raise UnknownCursor(f"{self._redis.place}: {cursor!r} is no cursor of this log; start again without one")
        return cursor


def _order(key: str) -> tuple[int, int]:
    milliseconds, _, number = key.partition("-")
    return int(milliseconds), int(number)


def _key(score: int) -> str:
    """The stream id that a score stands for."""
    since, number = divmod(score, PER_MS)
    return f"{EPOCH_MS + since}-{number}"


def _batches(records: Sequence[RoutingRecord]) -> Iterator[list[str | bytes]]:
    """Ids and lines in turn, in parts that one script call may carry."""
    batch, size = list[str | bytes](), 0
    for record in records:
        line = encode(record)
        if batch and (len(batch) == 2 * SCRIPT or size + len(line) > SCRIPT_BYTES):
            yield batch
            batch, size = [], 0
        batch += (record.request_id, line)
        size += len(line)
    if batch:
        yield batch
