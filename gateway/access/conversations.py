"""Which expert each conversation is with, told between gateways: through the Redis that counts for them, if any.

No request waits for it but a follow-up to an answer that another gateway gave, and that no longer than LOOK.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

from coe.routing.affinity import Affinity
from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.access.factory import MEMORY
from gateway.access.redis_connection import client_of

_log = logging.getLogger("gateway")

LOOK = 0.005
"""Seconds that a request waits at most to hear of its conversation."""
TICK = 0.05
"""Seconds until an answer that began here is known elsewhere."""
KEPT = 3600
"""Seconds that a silent conversation is remembered: prefix caches forget sooner. About 130 bytes each in Redis."""
WAITING = 10_000
"""Conversations that wait to be told, at most; the oldest are dropped."""
ANSWER = 1.0
"""Seconds for one exchange with Redis, connecting included."""
RETRY = 1.0
"""Seconds between two looks whether Redis is back."""
_TELL = "for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[1]) end"
"""One command for all that is told: the client library takes two to three times as long for one each."""


@asynccontextmanager
async def open_affinity(counters: str, *, task_failed: TaskFailed = ignore_failure) -> AsyncIterator[Affinity]:
    """What a process remembers, with the others' knowledge where `access.counters` names a Redis. Raises ConfigError
    for an address that cannot be one."""
    if counters == MEMORY:
        yield Affinity()
        return
    async with Conversations(counters, task_failed=task_failed) as conversations:
        yield Affinity(shared=conversations)


class Conversations:
    """An Elsewhere for as long as it is entered. While Redis is away nothing is known and what is told is lost.

    One task speaks with Redis: all that was told and asked meanwhile goes in one exchange, so that a busy gateway does
    not make one for each request.
    """

    def __init__(self, url: str, *, task_failed: TaskFailed = ignore_failure) -> None:
        """Raises ConfigError when `url` cannot be a Redis address."""
        self._task_failed = task_failed
        self._client = client_of(url)
        self._told: dict[bytes, str] = {}
        self._asked: dict[bytes, asyncio.Future[str | None]] = {}
        self._wake = asyncio.Event()
        self._due = self._away = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = supervised(self._tend, "conversations", task_failed=self._task_failed)
        self._wake.set()  # connects: the first who asks would wait longer for that than LOOK
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Tell what was not told yet, as far as Redis answers."""
        assert self._task
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if not self._away:
            await self._exchange()
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    def publish(self, key: bytes, expert: str) -> None:
        self._told.pop(key, None)
        self._told[key] = expert
        if len(self._told) > WAITING:
            del self._told[next(iter(self._told))]
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(TICK, self._wake.set)

    async def lookup(self, key: bytes) -> str | None:
        """The expert of that conversation; None where nobody knows or Redis does not say within LOOK."""
        if self._away:
            return None
        if key not in self._asked:
            self._asked[key] = asyncio.get_running_loop().create_future()
        answer = self._asked[key]
        self._wake.set()
        await asyncio.wait((answer,), timeout=LOOK)
        return answer.result() if answer.done() else None

    # --------------------------------------------------------------------------------------------- in the background

    async def _tend(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._exchange()
            if self._away:
                await asyncio.sleep(RETRY)
                self._wake.set()

    async def _exchange(self) -> None:
        """Tell and ask all that waits. Does not fail."""
        told, self._told, self._due = self._told, {}, False
        asked, self._asked = self._asked, {}
        found: Iterable[bytes | None] = ()
        try:
            async with asyncio.timeout(ANSWER):
                found = await self._send(told, asked)
            if self._away:
                _log.warning("conversations: Redis is back")
            self._away = False
        except Exception as error:  # whatever the client library has: no request fails for the sake of its style
            if not self._away:
                _log.warning("conversations: %r; until Redis is back each gateway remembers its own", error)
            self._away = True
        finally:
            for answer, expert in zip(asked.values(), found, strict=False):
                answer.set_result(None if expert is None else expert.decode(errors="replace"))
            for answer in asked.values():
                if not answer.done():
                    answer.set_result(None)

    async def _send(self, told: Mapping[bytes, str], asked: Iterable[bytes]) -> list[bytes | None]:
        """One round trip; what was asked, in order."""
        line, names = self._client.pipeline(transaction=False), [_name(key) for key in asked]
        if told:
            line.eval(_TELL, len(told), *map(_name, told), KEPT, *told.values())
        if names:
            line.mget(names)
        else:  # or nothing would be sent where nothing waits, and a Redis that is away would seem to be back
            line.ping()
        found = (await line.execute())[-1]
        return found if names else []


def _name(key: bytes) -> str:
    return f"coe:with:{key.hex()}"
