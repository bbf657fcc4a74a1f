"""Worker processes that crash, and a parent that is killed."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

import aiohttp
import psutil
import pytest

from coe.fleet.specs import free_port
from tests import forked
from tests.gateway.served import ROOT, Served, serving
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

DEADLINE = 60
"""Time limit of every wait, in seconds."""


async def answered(served: Served) -> None:
    """One answer; a connection that a killed worker had accepted may break."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with suppress(aiohttp.ClientConnectionError):
                async with served.send_chat("good") as response:
                    assert response.status == 200
                    return


async def test_repeated_crashes_of_one_worker_leave_the_other_serving(tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    with log.open("wb") as stderr:
        async with serving(tmp_path, environ={"COE_WORKERS": "2"}, stderr=stderr) as served:
            await wait_until(lambda: len(served.workers) == 2, pause=0.02)
            survivor, victim = served.workers
            for _ in range(2):
                victim.kill()
                await wait_until(lambda gone=victim: gone not in served.workers, pause=0.02)  # type: ignore[misc]
                await answered(served)
                await wait_until(lambda: len(served.workers) == 2, pause=0.02)
                (victim,) = (one for one in served.workers if one != survivor)
            assert served.process.returncode is None
            await answered(served)
            async with asyncio.timeout(DEADLINE):
                while await served.metric("coe_worker_crashes") != 2:
                    await asyncio.sleep(0.05)
    said = log.read_text()
    for delay in ("0.5 s", "1 s"):
        assert f"was killed by SIGKILL; the others serve on, and it starts again in {delay}" in said


async def test_workers_end_with_a_killed_parent_and_the_next_start_finds_the_port_free(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_WORKERS": "2"}) as served:
        await wait_until(lambda: len(served.workers) == 2, pause=0.02)
        await answered(served)
        left = served.workers
        async with served.send_chat("stalls", stream=True) as response:
            await response.content.readuntil(b"\n\n")
            served.process.send_signal(signal.SIGKILL)
            await served.process.wait()
            rest = await asyncio.wait_for(response.content.read(), DEADLINE)
        assert b'"code":"draining"' in rest
        assert (await asyncio.to_thread(psutil.wait_procs, left, DEADLINE))[1] == []
        await served.start()
        await answered(served)
        assert [record.outcome for record in await served.records(3)] == ["ok", "draining", "ok"]


async def test_sigterm_to_the_whole_process_group_and_twice_ends_the_gateway_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        async with served.send_chat("stalls", stream=True) as response:
            await response.content.readuntil(b"\n\n")
            for process in (*served.workers, *served.workers, psutil.Process(served.process.pid)):
                process.terminate()
                await asyncio.sleep(0.1)
            response.close()
        assert await asyncio.wait_for(served.process.wait(), 40) == 0  # a blocked worker would be killed after 50 s
        assert [record.outcome for record in await served.records(1)] == ["aborted"]


async def test_workers_that_cannot_start_end_the_gateway_with_the_cause(tmp_path: Path) -> None:
    environ = os.environ | {"COE_CONFIG": str(tmp_path / "experts.yaml"), "COE_PORT": str(free_port())}
    command = forked.python("tests.hostile.failing_server")
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environ | {"COE_WORKERS": "2"}, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode == 1
    last = said.decode().strip().splitlines()[-1]
    assert "the gateway stops, because no worker could start: worker " in last
    assert "exited with code 1; see the log above" in last
    assert "the disk is away" in said.decode()


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_WORKERS": "1", "HANG_SECONDS": "3"}) as served:
        await wait_until(lambda: len(served.workers) == 1, pause=0.02)
        (victim,) = served.workers
        await answered(served)
        victim.suspend()
        await wait_until(lambda: served.workers not in ([], [victim]), pause=0.02)
        await answered(served)
