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


async def load(served: Served, answered: dict[str, float], *, killed: asyncio.Event) -> None:
    """Send requests of many clients until the worker is killed. Notes the time of each answer by request id."""

    async def send_chat() -> None:
        with suppress(aiohttp.ClientError):
            while not killed.is_set():
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
        killed = asyncio.Event()
        clients = asyncio.create_task(load(served, answered, killed=killed))
        early: set[str] = set()
        async with asyncio.timeout(60):
            while len(early) < LEAST:
                await asyncio.sleep(0.1)
                early = {name for name, at in answered.items() if at <= time.monotonic() - WRITTEN}
        await kill(worker)
        killed.set()
        await clients
        missing = answered.keys() - await logged(served)
    assert missing & early == set()
