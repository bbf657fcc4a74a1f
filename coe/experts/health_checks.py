"""Reads the queue lengths of inference servers in the background, for load-aware selection.

The queue length is on a server's page of metrics, under the name that vLLM, SGLang or llama.cpp gives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

from coe.experts.http.client import Client
from coe.experts.replicas import Replica, ReplicatedExpert
from coe.supervision import TaskFailed, ignore_failure, supervised
from coe.urls import join_path

ROUND_INTERVAL = 1.0
"""Seconds between two rounds."""
SLOW_CHECK_ROUNDS = 5
"""Rounds between two checks whether a server shows its queue."""
PAGE_TIMEOUT = 2.0
"""Seconds for one page."""
MAX_PAGE_BYTES = 4 * 2**20
CONCURRENCY = 32
"""Pages requested at a time."""
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
        """Reads the queue of each replica that shows one, unless its breaker is open. Takes a few seconds at most."""
        self._round += 1
        replicas = [replica for expert in experts for replica in expert.replicas if replica.root]
        self._shows_queue = {replica: self._shows_queue.get(replica) for replica in replicas}
        slow = self._round % SLOW_CHECK_ROUNDS == 0
        checks = []
        for replica, shows in self._shows_queue.items():
            if replica.state in ("open", "half_open"):
                replica.queue_length = None
            elif shows or (shows is None and slow):
                checks.append(self._check_queue(replica))
        await asyncio.gather(*checks)

    async def _check_queue(self, replica: Replica) -> None:
        status, page = 0, b""
        with contextlib.suppress(OSError, ValueError):  # TimeoutError is an OSError; ValueError: no URL
            async with self._slots, asyncio.timeout(PAGE_TIMEOUT):
                status, page = await self._session.get(join_path(replica.root, "metrics"), max_bytes=MAX_PAGE_BYTES)
        if 200 <= status < 500:
            self._shows_queue[replica] = status == 200 and any(prefix in page for prefix in _METRIC_PREFIXES)
        replica.queue_length = queue_length(page) if status == 200 and self._shows_queue[replica] else None


def queue_length(page: bytes) -> int:
    """The sum of the queue lengths on a page of metrics."""
    try:
        return int(sum(float(number) for number in _WAITING.findall(b"\n" + page)))
    except (ValueError, OverflowError):
        return 0
