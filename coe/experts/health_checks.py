"""Checks replicas in the background: health pages of failed servers, and queue lengths of inference servers.

A server whose breaker is open gets its health page polled, for the operator. For a closed one, the queue length on its
metrics page feeds load-aware selection, under the name that vLLM, SGLang or llama.cpp gives it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

from coe.experts.error_mapping import out_of_descriptors
from coe.experts.http.client import Client
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.supervision import TaskFailed, ignore_failure, supervised
from coe.urls import join_path

ROUND_INTERVAL = 1.0
"""Seconds between two rounds."""
SLOW_CHECK_ROUNDS = 5
"""Rounds between two checks of what rarely changes: a failed server, or one that may not show its queue."""
PAGE_TIMEOUT = 2.0
"""Seconds for one page."""
MAX_PAGE_BYTES = 4 * 2**20
CONCURRENCY = 32
"""Pages requested at a time."""
NOT_CONNECTED = -1
"""In place of a status: this process could not connect, which is not the server's fault."""
_QUEUE_NAMES = rb"vllm:num_requests_waiting|sglang:num_queue_reqs|llamacpp:requests_deferred"
_WAITING = re.compile(rb"\n(?:" + _QUEUE_NAMES + rb")(?:\{[^\n]*\})? ([0-9.]+)")
_METRIC_PREFIXES = (b"vllm:", b"sglang:", b"llamacpp:")
_log = logging.getLogger(__name__)


@asynccontextmanager
async def running_health_checks(
    experts: Callable[[], Iterable[ReplicatedExpert]], *, session: Client, task_failed: TaskFailed = ignore_failure
) -> AsyncIterator[None]:
    """Checks the replicas of `experts()` until the block ends; it is called each round, because a reload replaces them.
    One task serves all experts of a process, and no request waits for it."""
    task = supervised(partial(_run, experts, HealthChecks(session)), "health-checks", task_failed=task_failed)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _run(experts: Callable[[], Iterable[ReplicatedExpert]], checks: HealthChecks) -> None:
    while True:
        try:
            await checks.run_round(experts())
            for expert in experts():
                expert.incidents.close_resolved()
        except Exception:
            _log.exception("health checks of the experts failed; the next round is in %g s", ROUND_INTERVAL)
        await asyncio.sleep(ROUND_INTERVAL)


class HealthChecks:
    """Remembers of the replicas of the last round whether they show a queue; None: unknown."""

    def __init__(self, session: Client) -> None:
        self._session = session
        self._shows_queue: dict[Replica, bool | None] = {}
        self._round = -1
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def run_round(self, experts: Iterable[ReplicatedExpert]) -> None:
        """Checks the queue of each closed replica that shows one, and the health of each open one. Takes a few seconds
        at most."""
        self._round += 1
        replicas = [replica for expert in experts for replica in expert.replicas if replica.root]
        self._shows_queue = {replica: self._shows_queue.get(replica) for replica in replicas}
        slow = self._round % SLOW_CHECK_ROUNDS == 0
        checks = []
        for replica, shows in self._shows_queue.items():
            if replica.state in ("open", "half_open"):
                replica.queue_length = None
                if slow:
                    checks.append(self._check_health(replica))
            elif shows or (shows is None and slow):
                checks.append(self._check_queue(replica))
        await asyncio.gather(*checks)

    async def _check_health(self, replica: Replica) -> None:
        status, _ = await self._page(join_path(replica.root, "health"))
        if status in (404, 405):
            status, _ = await self._page(join_path(replica.root, "v1/models"))
        if status != NOT_CONNECTED:
            replica.alive = 0 < status < 500

    async def _check_queue(self, replica: Replica) -> None:
        status, page = await self._page(join_path(replica.root, "metrics"))
        if status == NOT_CONNECTED:
            return
        replica.alive = status > 0
        if 200 <= status < 500:
            self._shows_queue[replica] = status == 200 and any(prefix in page for prefix in _METRIC_PREFIXES)
        replica.queue_length = queue_length(page) if status == 200 and self._shows_queue[replica] else None

    async def _page(self, url: str) -> tuple[int, bytes]:
        """Status and start of a page. Status 0 if there was no response, NOT_CONNECTED if this process could not
        connect."""
        try:
            async with self._slots, asyncio.timeout(PAGE_TIMEOUT):
                return await self._session.get(url, max_bytes=MAX_PAGE_BYTES)
        except (OSError, ValueError) as error:  # TimeoutError is an OSError; ValueError: no URL
            return NOT_CONNECTED if out_of_descriptors(error) else 0, b""


def queue_length(page: bytes) -> int:
    """The sum of the queue lengths on a page of metrics."""
    try:
        return int(sum(float(number) for number in _WAITING.findall(b"\n" + page)))
    except (ValueError, OverflowError):
        return 0
