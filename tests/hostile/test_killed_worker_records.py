"""Records of answered requests, when their worker process is killed with SIGKILL."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.gateway.served import Served, serving

pytestmark = pytest.mark.anyio

CLIENTS = 8
WRITTEN = 2.0
"""Seconds after which a record must be in the log: a hundred times the writer's interval, for slow disks."""
LEAST = 100
"""Requests that are answered before the kill."""


async def load(served: Served, answered: dict[str, float]) -> None:
    """Send requests of many clients until the connections break. Returns the time of each answer by request id."""

    async def send_chat() -> None:
        with suppress(aiohttp.ClientError):
            while True:
                async with served.send_chat("good") as response:
                    assert response.status == 200
                    await response.read()
                    answered[response.headers["x-request-id"]] = time.monotonic()

    await asyncio.gather(*(send_chat() for _ in range(CLIENTS)))


async def kill(worker: psutil.Process) -> None:
    worker.kill()
    assert (await asyncio.to_thread(psutil.wait_procs, [worker], 30))[1] == []


async def logged(served: Served) -> set[str]:
    return {record.request_id for record in await served.records(0)}


async def test_a_worker_killed_under_load_loses_only_the_records_of_its_last_moment(tmp_path: Path) -> None:
    answered: dict[str, float] = {}
    async with serving(tmp_path) as served:
        (worker,) = served.workers
        clients = asyncio.create_task(load(served, answered))
        early: set[str] = set()
        async with asyncio.timeout(60):
            while len(early) < LEAST:
                await asyncio.sleep(0.1)
                early = {name for name, at in answered.items() if at <= time.monotonic() - WRITTEN}
        await kill(worker)
        await clients
        missing = answered.keys() - await logged(served)
    assert missing & early == set()


async def test_once_the_backlog_is_written_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    answered: dict[str, float] = {}
    async with serving(tmp_path) as served:
        (worker,) = served.workers
        clients = asyncio.create_task(load(served, answered))
        async with asyncio.timeout(60):
            while len(answered) < LEAST:
                await asyncio.sleep(0.1)
        clients.cancel()
        with suppress(asyncio.CancelledError):
            await clients
        async with asyncio.timeout(60):
            while await served.metric("coe_requests_in_flight") or await served.metric("coe_log_backlog"):
                await asyncio.sleep(0.05)
        await kill(worker)
        assert answered.keys() - await logged(served) == set()
