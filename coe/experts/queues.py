"""Reads the queue lengths of inference servers in the background, for load-aware selection.

The queue length is on a server's page of metrics, under the name that vLLM, SGLang or llama.cpp gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from coe.experts.http.client import Client
from coe.experts.replicas import Replica, ReplicatedExpert
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
    its server shows no queue. Takes a few seconds at most."""

    async def read(replica: Replica) -> None:
        status, page = 0, b""
        with contextlib.suppress(OSError, ValueError):  # TimeoutError is an OSError; ValueError: no URL
            async with asyncio.timeout(PAGE_TIMEOUT):
                status, page = await session.get(join_path(replica.root, "metrics"), max_bytes=MAX_PAGE_BYTES)
        shows_queue = status == 200 and _WAITING.search(b"\n" + page) is not None
        replica.queue_length = queue_length(page) if shows_queue else None
        if not shows_queue and 0 < status < 500:
            without_queue.add(replica)

    replicas = {replica for expert in experts for replica in expert.replicas if replica.root}
    without_queue &= replicas
    for replica in replicas:
        if replica.state in ("open", "half_open"):
            replica.queue_length = None
    await asyncio.gather(*(read(one) for one in replicas - without_queue if one.state in ("closed", "rate_limited")))


def queue_length(page: bytes) -> int:
    """The sum of the queue lengths on a page of metrics."""
    return sum(map(int, _WAITING.findall(b"\n" + page)))
