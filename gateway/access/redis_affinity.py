"""Shares the expert of each conversation between gateways, through the Redis of `access.counters`.

Only a follow-up to an answer of another gateway waits for Redis, and at most LOOKUP_TIMEOUT_SECONDS. One task talks to
Redis and sends all pending writes and lookups in one pipeline, so that a busy gateway needs no round trip per request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self

from coe.routing.conversation import Affinity
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.access.limits import MEMORY
from gateway.access.redis import limits_client

_log = logging.getLogger("gateway")

LOOKUP_TIMEOUT_SECONDS = 0.005
"""Time limit of a request that waits for its conversation's expert."""
WRITE_DELAY_SECONDS = 0.05
"""Delay until an answer that began here is known to the other gateways."""
EXPIRY_SECONDS = 3600
"""Seconds that a silent conversation is remembered: prefix caches forget it sooner. About 130 bytes each in Redis."""
SUPERSEDED_EXPIRY_SECONDS = 300
"""Seconds that an answer is remembered once the conversation has continued: it is looked up only to regenerate the next
answer."""
MAX_PENDING_WRITES = 10_000
"""Entries that wait to be written; the oldest are dropped."""
EXCHANGE_TIMEOUT_SECONDS = 1.0
"""Time limit of one exchange with Redis, connecting included."""
RETRY_SECONDS = 1.0
"""Interval of attempts to reach a Redis that is down."""
_SUPERSEDED = b""
"""Value of a pending write that only shortens the life of an entry."""
_EXPIRIES = b"%d" % EXPIRY_SECONDS, b"%d" % SUPERSEDED_EXPIRY_SECONDS
_WRITE_ALL = b"""
for i, key in ipairs(KEYS) do
  if ARGV[i + 2] == '' then redis.call('EXPIRE', key, ARGV[2])
  else redis.call('SET', key, ARGV[i + 2], 'EX', ARGV[1]) end
end
"""
"""One command for all writes: the client library takes two to three times as long for one command each."""


@asynccontextmanager
async def open_affinity(counters: str, *, task_failed: TaskFailed = ignore_failure) -> AsyncIterator[Affinity]:
    """The affinity of a process, shared with other gateways where `access.counters` names a Redis. Raises ConfigError
    for an invalid address."""
    if counters == MEMORY:
        yield Affinity()
        return
    async with RedisAffinity(counters, task_failed=task_failed) as conversations:
        yield Affinity(shared=conversations)


class RedisAffinity:
    """A SharedAffinity while it is entered. While Redis is down, lookups find nothing and writes are lost."""

    def __init__(self, url: str, *, task_failed: TaskFailed = ignore_failure) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._task_failed = task_failed
        self._redis = limits_client(url)
        self._connection = self._redis.connection()
        self._writes: dict[bytes, bytes] = {}
        self._lookups: dict[tuple[bytes, ...], asyncio.Future[str | None]] = {}
        self._wake = asyncio.Event()
        self._write_scheduled = self._unavailable = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = supervised(self._run, "conversations", task_failed=self._task_failed)
        self._wake.set()  # connects now: it takes longer than LOOKUP_TIMEOUT_SECONDS
        return self

    async def __aexit__(self, *_: object) -> None:
        """Sends the pending writes, as far as Redis replies."""
        assert self._task
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if not self._unavailable:
            await self._exchange()
        await self._redis.aclose()

    def publish(self, keys: Sequence[bytes], expert: str, *, superseded: Sequence[bytes] = ()) -> None:
        """Store the expert under these keys. The `superseded` keys are needed for a short time only."""
        name = expert.encode()
        for key in superseded:
            self._write(key, _SUPERSEDED)
        for key in keys:
            self._write(key, name)
        while len(self._writes) > MAX_PENDING_WRITES:
            del self._writes[next(iter(self._writes))]
        if not self._write_scheduled:
            self._write_scheduled = True
            asyncio.get_running_loop().call_later(WRITE_DELAY_SECONDS, self._wake.set)

    def _write(self, key: bytes, value: bytes) -> None:
        self._writes.pop(key, None)  # the oldest entry is the first
        self._writes[key] = value

    async def lookup(self, keys: Sequence[bytes]) -> str | None:
        """The expert of the first key that is known; None if none is, or if Redis does not reply within
        LOOKUP_TIMEOUT_SECONDS."""
        if self._unavailable:
            return None
        wanted = tuple(keys)
        if wanted not in self._lookups:
            self._lookups[wanted] = asyncio.get_running_loop().create_future()
        reply = self._lookups[wanted]
        self._wake.set()
        await asyncio.wait((reply,), timeout=LOOKUP_TIMEOUT_SECONDS)
        return reply.result() if reply.done() else None

    # --------------------------------------------------------------------------------------------- in the background

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._exchange()
            if self._unavailable:
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def _exchange(self) -> None:
        """Sends all pending writes and lookups. Does not fail."""
        writes, self._writes, self._write_scheduled = self._writes, {}, False
        lookups, self._lookups = self._lookups, {}
        replies: Mapping[bytes, bytes | None] = {}
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT_SECONDS):
                replies = await self._send(writes, dict.fromkeys(key for keys in lookups for key in keys))
            if self._unavailable:
                _log.warning("conversations: %s is back", self._redis.place)
            self._unavailable = False
        except Exception as error:  # a lost affinity must not fail a request
            if not self._unavailable:
                problem = self._redis.describe(error)
                _log.warning("conversations: %s; until Redis is back each gateway remembers its own", problem)
            self._unavailable = True
        finally:
            for keys, reply in lookups.items():
                expert = next(filter(None, (replies.get(key) for key in keys)), None)
                if not reply.done():
                    reply.set_result(None if expert is None else expert.decode(errors="replace"))

    async def _send(self, writes: Mapping[bytes, bytes], lookups: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """One round trip. Returns the reply to each lookup."""
        commands: list[list[bytes]] = []
        if writes:
            names = list(map(_redis_key, writes))
            commands.append([b"EVAL", _WRITE_ALL, b"%d" % len(names), *names, *_EXPIRIES, *writes.values()])
        if keys := list(lookups):
            commands.append([b"MGET", *map(_redis_key, keys)])
        if not commands:  # a reply to PING shows that Redis is back
            commands.append([b"PING"])
        replies = await self._connection.exchange(*commands)
        return dict(zip(keys, replies[-1], strict=True)) if keys else {}


def _redis_key(key: bytes) -> bytes:
    return b"coe:with:" + key.hex().encode()
