"""The routing log as one Redis stream, shared by every gateway replica. Needs Redis 6.2 or newer, or Valkey."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from coe.core import LogPage, LogQuery, RoutingRecord
from coe.errors import ConfigError, LogError
from coe.records.codec import decode, encode
from coe.records.selection import filters, matches, page_size

STREAM = "coe:records"
IDS = "{coe:records}:ids"
"""Request ids in the order they came. The braces put it into the stream's slot of a Redis cluster."""

SCRIPT = 500  # records in one script call: some milliseconds in which the server serves nobody else
SCRIPT_BYTES = 4_000_000  # and their size, which matters where prompts are kept
CHUNK = 1_000  # entries fetched at a time while filtering
SCAN = 50_000  # entries one filtered call looks at, at most
SKEW_MS = 3_600_000  # how far the gateways' clocks and the server's may differ

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0
CONNECTIONS = 8

# One step for the server, so an id is remembered exactly when its record was added, also across a crash with
# append-only persistence. Ids outlive their records a little: the stream is trimmed by whole nodes.
APPEND = """
local last = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local number = tonumber(last[2] or '0')
for i = 3, #ARGV, 2 do
  number = number + 1
  if redis.call('ZADD', KEYS[2], 'NX', number, ARGV[i]) == 1 then
    redis.call('XADD', KEYS[1], '*', 'record', ARGV[i + 1])
  end
end
redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
"""
ID_SLACK = 1_000

Entry = tuple[str, RoutingRecord]


class RedisLog:
    """A RoutingLog whose cursor is the stream id. Nothing is connected before the first call.

    Redis filters nothing by itself: a filtered call looks at SCAN entries at most, so `read` may return few records or
    none with a cursor that moved on (read again from it), and `tail` finds only what is that near to the end.
    """

    def __init__(self, url: str, *, retention: int) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=ANSWER_SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 1),  # a pooled connection may have died since; appending twice is harmless
            )
            pool.connection_class(**pool.connection_kwargs)  # unknown options in the URL show here, not at night
        except (ValueError, TypeError):
            # The cause is not named: where the password has an unescaped / or #, it would quote a part of it.
            raise ConfigError(
                "routing log: not a Redis address; write redis://[user:password@]host:6379/0, the password in %-escapes"
            ) from None
        self._place = (
            f"redis at {pool.connection_kwargs.get('host', 'localhost')}:{pool.connection_kwargs.get('port', 6379)}"
        )
        self._client: Redis = Redis(connection_pool=pool)
        self._append = self._client.register_script(APPEND)
        self._errors = (RedisError, OSError)
        self._retention = retention

    async def append(self, records: Sequence[RoutingRecord]) -> None:
        """Add the records in order; what a failure leaves unsaid may be appended again. Raises LogError."""
        for arguments in _batches(records):
            try:
                await self._append(keys=[STREAM, IDS], args=[self._retention, self._retention + ID_SLACK, *arguments])
            except self._errors as error:
                raise self._failure(error) from error

    async def read(self, query: LogQuery) -> LogPage:
        """The next matching records after the cursor. Raises LogError."""
        size, found, cursor = page_size(query), list[RoutingRecord](), query.after
        if not size:
            return LogPage((), cursor)
        async with aclosing(self._walk(query, newest_first=False)) as entries:
            async for cursor, record in entries:  # noqa: B007 (the last one looked at is the answer)
                if matches(record, query):
                    found.append(record)
                if len(found) == size:
                    break
        return LogPage(tuple(found), cursor)

    async def tail(self, query: LogQuery) -> LogPage:
        """The newest matching records; the cursor is the end of the log, for reading on from there. Raises LogError."""
        size, found, cursor = page_size(query), list[RoutingRecord](), ""
        async with aclosing(self._walk(query, newest_first=True)) as entries:
            async for key, record in entries:
                cursor = cursor or key
                if len(found) == size:
                    break
                if matches(record, query):
                    found.append(record)
        return LogPage(tuple(reversed(found)), cursor or query.after)

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _walk(self, query: LogQuery, *, newest_first: bool) -> AsyncGenerator[Entry]:
        """Entries after the query's cursor, SCAN of them at most, in chunks."""
        start, end = self._start(query), "+"
        chunk = CHUNK if filters(query) else min(CHUNK, page_size(query) + 1)
        for _ in range(0, SCAN, chunk):
            entries = await self._fetch(start, end, count=chunk, newest_first=newest_first)
            for key, fields in entries:
                yield key.decode(), decode(fields[b"record"])
            if len(entries) < chunk:
                return
            edge = "(" + entries[-1][0].decode()
            start, end = (start, edge) if newest_first else (edge, end)

    async def _fetch(
        self, start: str, end: str, *, count: int, newest_first: bool
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        try:
            if newest_first:
                entries: Any = await self._client.xrevrange(STREAM, max=end, min=start, count=count)
            else:
                entries = await self._client.xrange(STREAM, min=start, max=end, count=count)
        except self._errors as error:
            raise self._failure(error) from error
        return list(entries)

    def _start(self, query: LogQuery) -> str:
        """Where the walk begins: after the cursor, and not before `since`, as no record is appended before its time."""
        since = f"{max(0, int(query.since * 1_000) - SKEW_MS)}-0"
        if not query.after:
            return since
        if not re.fullmatch(r"\d{1,19}-\d{1,19}", query.after):
            raise LogError(f"{self._place}: {query.after!r} is no cursor of this log; start again without one")
        return since if _order(since) > _order(query.after) else "(" + query.after

    def _failure(self, error: Exception) -> LogError:
        return LogError(f"{self._place}: {error}; check that it runs, takes writes and has memory")


def _order(key: str) -> tuple[int, int]:
    milliseconds, _, number = key.partition("-")
    return int(milliseconds), int(number)


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
