"""The routing log as one Redis stream, shared by every gateway replica. Needs Redis 6.2 or newer, or Valkey."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing

from coe.errors import LogError
from coe.record import LogPage, LogQuery, RoutingRecord
from coe.records.codec import encode, intact
from coe.records.connection import Connection
from coe.records.selection import DAY, filters, matches, page_size

STREAM = "coe:records"
IDS = "{coe:records}:ids"
"""Request ids in the order they came. The braces put it into the stream's slot of a Redis cluster."""

SCRIPT = 500  # records in one script call: some milliseconds in which the server serves nobody else
SCRIPT_BYTES = 4_000_000  # and their size, which matters where prompts are kept
CHUNK = 1_000  # entries fetched at a time while filtering
SCAN = 50_000  # entries one filtered call looks at, at most
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

Entry = tuple[str, RoutingRecord | None]
"""The cursor after it, and the record, None for an entry that is none."""


class RedisLog:
    """A RoutingLog whose cursor is the stream id. Nothing is connected before the first call.

    Redis filters nothing by itself: a filtered call looks at SCAN entries at most, so `read` may return few records or
    none with a cursor that moved on (read again from it), and `tail` finds only what is that near to the end.
    """

    def __init__(self, url: str, *, retention: int, days: float | None) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._redis = Connection(url)
        self._append = self._redis.client.register_script(APPEND)
        self._forget = self._redis.client.register_script(FORGET)
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
        size, found, cursor, damaged = page_size(query.limit), list[RoutingRecord](), query.after, 0
        if not size:
            return LogPage((), cursor)
        async with aclosing(self._walk(query, newest_first=False)) as entries:
            async for cursor, record in entries:  # noqa: B007 (the last one looked at is the answer)
                damaged += record is None
                if record and matches(record, query):
                    found.append(record)
                if len(found) == size:
                    break
        return LogPage(tuple(found), cursor, damaged)

    async def tail(self, query: LogQuery) -> LogPage:
        """The newest matching records; the cursor is the end of the log, for reading on from there. Raises LogError."""
        size, found, cursor, damaged = page_size(query.limit), list[RoutingRecord](), "", 0
        async with aclosing(self._walk(query, newest_first=True)) as entries:
            async for key, record in entries:
                cursor = cursor or key
                if len(found) == size:
                    break
                damaged += record is None
                if record and matches(record, query):
                    found.append(record)
        return LogPage(tuple(reversed(found)), cursor or query.after, damaged)

    async def find(self, request_id: str) -> RoutingRecord | None:
        """The record of that id; None too for one that an earlier CoE appended. Raises LogError."""
        score = await self._redis.answer(self._redis.client.zscore(IDS, request_id))
        if score is None or score < 0:
            return None
        key = _key(int(score))
        for _, fields in await self._redis.answer(self._redis.client.xrange(STREAM, min=key, max=key)):
            record = _record(fields)
            if record and record.request_id == request_id:
                return record
        return None

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _walk(self, query: LogQuery, *, newest_first: bool) -> AsyncGenerator[Entry]:
        """Entries after the query's cursor, SCAN of them at most, in chunks."""
        start, end = self._start(query), "+"
        chunk = CHUNK if filters(query) else min(CHUNK, page_size(query.limit) + 1)
        for _ in range(0, SCAN, chunk):
            entries = await self._fetch(start, end, count=chunk, newest_first=newest_first)
            for key, fields in entries:
                yield key.decode(), _record(fields)
            if len(entries) < chunk:
                return
            edge = "(" + entries[-1][0].decode()
            start, end = (start, edge) if newest_first else (edge, end)

    async def _fetch(
        self, start: str, end: str, *, count: int, newest_first: bool
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        client = self._redis.client
        command = (
            client.xrevrange(STREAM, max=end, min=start, count=count)
            if newest_first
            else client.xrange(STREAM, min=start, max=end, count=count)
        )
        entries = await self._redis.answer(command)
        return list(entries)

    def _start(self, query: LogQuery) -> str:
        """Where the walk begins: after the cursor, and not before `since`, as no record is appended before its time."""
        since = f"{max(0, int(query.since * 1_000) - SKEW_MS)}-0"
        if not query.after:
            return since
        if not re.fullmatch(r"\d{1,19}-\d{1,19}", query.after):
            raise LogError(f"{self._redis.place}: {query.after!r} is no cursor of this log; start again without one")
        return since if _order(since) > _order(query.after) else "(" + query.after


def _record(fields: Mapping[bytes, bytes]) -> RoutingRecord | None:
    return intact(fields.get(b"record", b""))


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
