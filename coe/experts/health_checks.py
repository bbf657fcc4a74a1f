"""Looks after replicas in the background: whether a failed one is back, and how long the queues of vLLM servers are."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

from coe.experts.descriptors import NoDescriptor
from coe.experts.http.client import NO_HEADERS, Client, Target
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.supervision import TaskFailed, ignored, supervised
from coe.urls import below

ROUND = 1.0
"""Seconds between two looks at a queue."""
SELDOM = 5
"""Rounds between two looks at what rarely changes: a server that is down, or one not known to show its queue."""
PATIENCE = 2.0
"""Seconds one page may take."""
LONGEST_PAGE = 4 * 2**20
TOGETHER = 32
"""Pages asked for at a time."""
UNKNOWN = -1
"""In place of a status: the page could not be requested, which is not the server's fault."""
_WAITING = re.compile(rb"\nvllm:num_requests_waiting(?:\{[^\n]*\})? ([0-9.]+)")
_log = logging.getLogger(__name__)


@asynccontextmanager
async def watching(
    experts: Callable[[], Iterable[ReplicatedExpert]], *, session: Client, task_failed: TaskFailed = ignored
) -> AsyncIterator[None]:
    """Watch what `experts()` gives, asked anew each round (a reload replaces them), until the block ends. One task for
    all experts of a process; no request waits for it."""
    task = supervised(partial(_watch, experts, HealthChecks(session)), "expert-watch", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch(experts: Callable[[], Iterable[ReplicatedExpert]], watch: HealthChecks) -> None:
    while True:
        try:
            await watch.look(experts())
            for expert in experts():
                expert.incidents.settle()
        except Exception:
            _log.exception("looking after the experts failed; they are looked at again in %g s", ROUND)
        await asyncio.sleep(ROUND)


class _Seen:
    """What the watch knows of one replica: whether it `shows` its queue (None: not known yet), and was `alive`."""

    __slots__ = ("alive", "shows")

    def __init__(self) -> None:
        self.shows: bool | None = None
        self.alive = True


class HealthChecks:
    """Remembers between rounds what it saw, of those replicas alone that were there in the last one."""

    def __init__(self, session: Client) -> None:
        self._session = session
        self._seen: dict[Replica, _Seen] = {}
        self._round = -1
        self._turn = asyncio.Semaphore(TOGETHER)

    async def look(self, experts: Iterable[ReplicatedExpert]) -> None:
        """One round: a closed replica's queue where it shows one, an open one's health. Takes some seconds at most."""
        self._round += 1
        replicas = [replica for expert in experts for replica in expert.replicas if replica.root]
        self._seen = {replica: self._seen.get(replica) or _Seen() for replica in replicas}
        seldom = self._round % SELDOM == 0
        looks = []
        for replica, seen in self._seen.items():
            if replica.state in ("open", "half_open"):
                replica.waiting = None
                if seldom:
                    looks.append(self._look_for_life(replica, seen))
            elif seen.shows or (seen.shows is None and seldom):
                looks.append(self._look_at_queue(replica, seen))
        await asyncio.gather(*looks)

    async def _look_for_life(self, replica: Replica, seen: _Seen) -> None:
        """Back from the dead, a server may be tried at once. One whose health page never failed may not: its breaker
        opened for another reason and knows how long to wait."""
        status, _ = await self._page(below(replica.root, "health"))
        if status in (404, 405):
            status, _ = await self._page(below(replica.root, "v1/models"))
        if status == UNKNOWN:
            return
        alive = 0 < status < 500
        if alive and not seen.alive:
            replica.breaker.hurry()
        seen.alive = replica.alive = alive

    async def _look_at_queue(self, replica: Replica, seen: _Seen) -> None:
        seen.alive = True
        status, page = await self._page(below(replica.root, "metrics"))
        if status == UNKNOWN:
            return
        replica.alive = status > 0
        if 200 <= status < 500:
            seen.shows = status == 200 and b"vllm:" in page
        replica.waiting = waiting(page) if status == 200 and seen.shows else None

    async def _page(self, url: str) -> tuple[int, bytes]:
        """Status and beginning of a page; status 0 where none came, UNKNOWN where this process could not connect."""
        try:
            async with self._turn, asyncio.timeout(PATIENCE):
                response = await self._session.ask(Target(url, NO_HEADERS, method="GET"))
                try:
                    chunks, size = [], 0
                    while size <= LONGEST_PAGE and (chunk := await response.chunk()):
                        chunks.append(chunk)
                        size += len(chunk)
                    return response.status, b"".join(chunks)
                finally:
                    response.close()
        except NoDescriptor:
            return UNKNOWN, b""
        except (OSError, ValueError):  # TimeoutError is an OSError; ValueError: no URL
            return 0, b""


def waiting(page: bytes) -> int:
    """Requests in all queues that a page of vLLM's metrics shows."""
    try:
        return int(sum(float(number) for number in _WAITING.findall(b"\n" + page)))
    except (ValueError, OverflowError):
        return 0
