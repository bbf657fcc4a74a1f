"""A fleet of fake servers: started, restarted, and ended without a trace."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web

from coe.core import Api
from coe.errors import FleetError
from coe.fleet.probe import is_ready
from coe.fleet.server import Fleet
from tests.fleet.fake_fleet import DEADLINE, QUICK, Fakes, send_chat
from tests.fleet.fake_server import FAMILY_SIZE

pytestmark = pytest.mark.anyio

PARENT = """
import asyncio, sys
from tests.fleet.fake_fleet import Fakes, QUICK
from pathlib import Path
from coe.fleet.server import Fleet

async def main():
    fakes = Fakes(Path(sys.argv[1]))
    async with Fleet([fakes.spec("family")], report=fakes.report, timeouts=QUICK):
        print("ready", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize(("mode", "processes"), [("deaf", 1), ("family", FAMILY_SIZE)])
async def test_leaving_the_block_ends_every_process(fakes: Fakes, mode: str, processes: int) -> None:
    async with Fleet([fakes.spec(mode)], report=fakes.report, timeouts=QUICK):
        assert len(fakes.alive()) == processes
    assert fakes.alive() == []


async def test_a_server_that_dies_is_restarted_on_its_port_and_its_workers_are_gone(fakes: Fakes) -> None:
    spec = fakes.spec("family")
    async with Fleet([spec], report=fakes.report, timeouts=QUICK):
        await send_chat(spec, "/die")
        await fakes.wait_for_line("is ready", times=2)
        assert len(fakes.alive()) == 1
        assert fakes.pids()[-1] == fakes.alive()[0]
    assert fakes.lines[1] == f"server 'fake' exited with code 7; restarting in 0.05 s (log: {spec.log})"
    assert len(fakes.lines) == 3


async def test_a_server_that_freezes_is_restarted(fakes: Fakes) -> None:
    spec = fakes.spec()
    async with Fleet([spec], report=fakes.report, timeouts=replace(QUICK, max_missed_checks=2)):
        await send_chat(spec, "/freeze")
        await fakes.wait_for_line("is ready", times=2)
    assert "failed 2 health checks in a row" in fakes.lines[1]


@asynccontextmanager
async def one_page(path: str, answer: dict[str, Any], status: int = 200) -> AsyncIterator[tuple[int, list[Any]]]:
    """A server with one page: its port, and the bodies it gets."""
    bodies: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        bodies.append(await request.json() if request.method == "POST" else None)
        return web.json_response(answer, status=status)

    app = web.Application()
    app.router.add_route("*", path, respond)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1], bodies
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("api", "path", "answer"),
    [
        ("completions", "/v1/completions", {"choices": [{}]}),
        ("embeddings", "/v1/embeddings", {"data": [{"embedding": [0.123456789] * 20_000}]}),
        ("rerank", "/v1/rerank", {"results": [{"index": 0}]}),
        ("score", "/v1/score", {"data": [{"score": 0.5}]}),
        ("audio/speech", "/health", {}),
    ],
)
async def test_a_server_without_chat_is_probed_with_an_api_of_its_own(
    fakes: Fakes, api: Api, path: str, answer: dict[str, Any]
) -> None:
    async with one_page(path, answer) as (port, bodies), aiohttp.ClientSession() as session:
        spec = replace(fakes.spec(port=port), apis=frozenset((api,)))
        assert await is_ready(spec, session=session)
    assert path == "/health" or bodies[0]["model"] == spec.model


async def test_a_server_whose_supervisor_is_killed_dies_with_it_and_is_restarted(fakes: Fakes) -> None:
    async with Fleet([fakes.spec()], report=fakes.report, timeouts=QUICK):
        psutil.Process(fakes.pids()[0]).parent().kill()
        await fakes.wait_for_line("is ready", times=2)
        assert len(fakes.alive()) == 1
    assert "was killed by SIGKILL" in fakes.lines[1]


async def test_a_port_in_use_is_reported_and_nothing_starts(fakes: Fakes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FleetError, match=f"'fake': port {port} of 127.0.0.1 is in use; stop the process"):
            async with Fleet([fakes.spec(port=port)], report=fakes.report, timeouts=QUICK):
                pass
    assert fakes.pids() == []


async def test_a_server_that_dies_at_start_fails_the_fleet_with_the_end_of_its_log(fakes: Fakes) -> None:
    specs = [fakes.spec("dies", key="bad"), fakes.spec("family", key="good")]
    with pytest.raises(FleetError) as caught:
        async with Fleet(specs, report=fakes.report, timeouts=QUICK):
            pass
    message = str(caught.value)
    assert message.startswith(
        "server 'bad' exited with code 1 before it was ready: ValueError: no such weights\nlast lines of "
    )
    assert "second line\nValueError: no such weights\nfix the cause, or run it by hand: " in message
    assert fakes.alive() == []


@pytest.mark.parametrize(
    ("mode", "message"), [("other-model", "404: .*no model a-model"), ("no-chat", '200: {"hello": "world"}')]
)
async def test_a_probe_response_that_cannot_become_valid_fails_the_fleet_at_once(
    fakes: Fakes, mode: str, message: str
) -> None:
    with pytest.raises(FleetError, match=f"readiness request for model 'a-model' with {message}"):
        async with Fleet([fakes.spec(mode)], report=fakes.report, timeouts=QUICK):
            pass
    assert fakes.alive() == []


async def test_cancelling_the_start_ends_what_was_started_even_when_cancelled_again_and_again(fakes: Fakes) -> None:
    async def run() -> None:
        async with Fleet(
            [fakes.spec("loading", key="a"), fakes.spec("deaf", key="b")], report=fakes.report, timeouts=QUICK
        ):
            pytest.fail("one of the two never gets ready")

    task = asyncio.create_task(run())
    await fakes.wait_for_line("'b' is ready")
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fakes.pids()
    assert fakes.alive() == []


async def test_killing_the_parent_ends_every_process_too(fakes: Fakes) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PARENT,
        str(fakes.folder),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"ready\n"
    processes = [psutil.Process(pid) for pid in fakes.alive()]
    assert len(processes) == FAMILY_SIZE
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    assert psutil.wait_procs(processes, DEADLINE)[1] == []
