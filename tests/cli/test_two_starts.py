"""Two `coe up` with one state folder: the second is refused until the first has ended, however it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from coe.cli.check import ENDPOINTS_FILE
from coe.fleet.specs import free_port
from tests import forked
from tests.cli.logged_service import LoggedService

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def up(service: LoggedService, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of `coe up`, which is ended after the block."""
    process = await asyncio.create_subprocess_exec(
        *forked.python("coe.cli", "up", "--config", str(service.config), "--port", str(port)),
        env=os.environ | {"COE_CHECK_EXPERTS": "0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.communicate(), 120)


async def until_ready(port: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(120), aiohttp.ClientSession() as client:
        while True:
            try:
                async with client.get(f"http://127.0.0.1:{port}/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                assert process.returncode is None
                await asyncio.sleep(0.05)


async def test_a_second_coe_up_is_refused_with_the_first_one_named_and_changes_nothing(service: LoggedService) -> None:
    first_port, second_port = free_port(), free_port()
    endpoints = service.settings.home / ENDPOINTS_FILE
    async with up(service, first_port) as first:
        await until_ready(first_port, first)
        written = endpoints.stat().st_ino
        async with up(service, second_port) as second:
            output, _ = await asyncio.wait_for(second.communicate(), 120)
        assert second.returncode == 1
        assert f"another `coe up` uses the state folder {service.settings.home} (process {first.pid} on" in (
            output.decode()
        )
        assert "stop it, or set COE_HOME to another folder" in output.decode()
        assert endpoints.stat().st_ino == written
        await until_ready(first_port, first)
        first.kill()
        await first.wait()
    async with up(service, second_port) as second:
        await until_ready(second_port, second)
