"""Polls the servers of experts in the background: their queues, for load-aware selection, and the health of those whose
breaker is open.

The queue length is on a server's page of metrics, under the name that vLLM, SGLang or llama.cpp gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from coe.experts import Replica, ReplicatedExpert
from coe.experts.http.client import Client
from coe.supervision import TaskFailed, ignore_failure, supervised
from coe.urls import join_path

INTERVAL = 1.0
"""Seconds between two rounds."""
PAGE_TIMEOUT = 2.0
"""Seconds for one page."""
MAX_PAGE_BYTES = 4 * 2**20
_WAITING = re.compile(
    rb"\n(?:vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred)(?:\{[^\n]*\})? ([0-9]+)"
)


@asynccontextmanager
async def reading_queues(
    experts: Callable[[], Iterable[ReplicatedExpert]], *, session: Client, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[None]:
    """Reads the queues of the replicas of `experts()`, and ends its resolved incidents, until the block ends.
    `experts` is called each round, because a reload replaces them."""

    async def run() -> None:
        without_queue = set[Replica]()
        while True:
            await read_queues(experts(), without_queue, session=session)
            for expert in experts():
                expert.incidents.close_resolved()
            await asyncio.sleep(INTERVAL)

    task = supervised(run, "expert-queues", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def read_queues(experts: Iterable[ReplicatedExpert], without_queue: set[Replica], *, session: Client) -> None:
    """Reads the queue of each replica whose breaker is closed, except those `without_queue`. Adds a replica to these if
    its server shows no queue. Checks that the others answer at all. Takes a few seconds at most."""

    async def get(replica: Replica, page: str) -> tuple[int, bytes]:
        with contextlib.suppress(OSError, ValueError):  # TimeoutError is an OSError; ValueError: no URL
            async with asyncio.timeout(PAGE_TIMEOUT):
                return await session.get(join_path(replica.root, page), max_bytes=MAX_PAGE_BYTES)
        return 0, b""

    async def read(replica: Replica) -> None:
        status, page = await get(replica, "metrics")
        shows_queue = status == 200 and _WAITING.search(b"\n" + page) is not None
        replica.queue_length = queue_length(page) if shows_queue else None
        if not shows_queue and 0 < status < 500:
            without_queue.add(replica)

    async def check(replica: Replica) -> None:
        status, _ = await get(replica, "health")
        replica.checked(0 < status < 500)  # a server without this page answers 404

    replicas = {replica for expert in experts for replica in expert.replicas if replica.root}
    without_queue &= replicas
    resting = {replica for replica in replicas if replica.breaker.is_open}
    for replica in resting:
        replica.queue_length = None
    failing = [one for one in replicas if one in resting or any(own.is_open for own in one.by_caller.values())]
    await asyncio.gather(*map(read, replicas - resting - without_queue), *map(check, failing))


def queue_length(page: bytes) -> int:
    """The sum of the queue lengths on a page of metrics."""
    return sum(map(int, _WAITING.findall(b"\n" + page)))
