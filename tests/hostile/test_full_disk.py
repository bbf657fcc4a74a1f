"""A gateway whose disk is full for a while: every chat is answered, and every record is logged afterwards.

A limit on the size of files simulates the full disk. It can be set for running processes, and children inherit it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.gateway.served import Served, serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of running processes can be changed on Linux only"),
]
TIMEOUT = 120
CHATS = 30
LOG, SPOOL = (f'degraded{{part="{part}"}}' for part in ("log", "spool"))


def limit_files(served: Served, size: int | None) -> None:
    """Limit the size of files of the gateway's processes in bytes; None lifts the limit."""
    for process in (psutil.Process(served.process.pid), *served.workers):
        with suppress(psutil.NoSuchProcess):
            _, hard = process.rlimit(resource.RLIMIT_FSIZE)
            process.rlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


async def answered(served: Served, count: int) -> None:
    for _ in range(count):
        async with served.send_chat("good") as response:
            assert response.status == 200, await response.text()
            await response.read()


async def until(served: Served, wanted: dict[str, int]) -> None:
    """Wait until these metrics have these values."""
    async with asyncio.timeout(TIMEOUT):
        while {name: await served.metric(f"coe_{name}") for name in wanted} != wanted:
            await asyncio.sleep(0.05)


async def replaced_worker(served: Served) -> None:
    """Kill a worker, and wait until another serves in its place."""
    before = {process.pid for process in served.workers}
    served.workers[0].kill()
    async with asyncio.timeout(TIMEOUT):
        while len(now := {process.pid for process in served.workers}) != 2 or now == before:
            await asyncio.sleep(0.05)
        while (await served.ready())["http"] != 200:
            await asyncio.sleep(0.05)


async def test_while_the_disk_is_full_chats_are_answered_and_afterwards_every_record_is_logged(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # the limit would hold for a file too
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)  # nothing reads before the end, and a full pipe would block
    with os.fdopen(reading, "rb") as output, os.fdopen(writing, "wb") as stderr:
        environ = {"COE_WORKERS": "2"}
        async with serving(tmp_path, environ=environ, stderr=stderr, stored_responses={"store": "sqlite"}) as served:
            await answered(served, CHATS)
            await served.records(CHATS)
            limit_files(served, 0)
            await replaced_worker(served)
            await answered(served, CHATS)
            await until(served, {LOG: 1, SPOOL: 1, "log_dropped": 0})
            await answered(served, CHATS)
            limit_files(served, None)
            await until(served, {LOG: 0, SPOOL: 0, "log_backlog": 0, "log_dropped": 0})
            assert len({record.request_id for record in await served.records(3 * CHATS)}) == 3 * CHATS
        stderr.close()
        lines = output.read().decode().splitlines()
    began = f"routing log: {tmp_path / '.coe' / 'routing-log.sqlite'}: "
    assert any(began in line and "check that the disk has room" in line for line in lines)
    assert any("routing log: works again (" in line for line in lines)
