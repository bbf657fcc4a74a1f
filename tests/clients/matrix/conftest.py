"""The scripted server and the gateway, both on real ports, for all clients; and the runs, each made once."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.clients.matrix import environment
from tests.clients.matrix.clients import Client
from tests.clients.matrix.runs import PROGRAMS, Run, run_program
from tests.clients.matrix.scripted_server import ScriptedServer
from tests.clients.matrix.service import Service, running

Runs = Callable[[Client, str], Run]


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedServer]:
    """In a thread and a loop of its own: the tests wait for processes."""
    server, started, stop = ScriptedServer(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with server.running():
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield server
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def service(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The gateway."""
    with running(tmp_path_factory.mktemp("service"), scripted.root) as service:
        yield service


@pytest.fixture(scope="session")
def runs(service: Service, scripted: ScriptedServer) -> Runs:
    """Returns a client's run against an expert, made when it is first requested."""
    shutil.copytree(PROGRAMS, environment.NPM / "programs", dirs_exist_ok=True)
    made: dict[tuple[str, str], Run] = {}

    def run_of(client: Client, expert: str) -> Run:
        key = (client.key, expert)
        if key not in made:
            made[key] = run_program(client, expert, service, scripted)
        return made[key]

    return run_of
