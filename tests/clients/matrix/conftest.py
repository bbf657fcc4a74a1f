"""The scripted server and the gateway, both on real ports, for all clients; and the runs, each made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.clients.matrix import environment
from tests.clients.matrix.agent_runs import run_agent
from tests.clients.matrix.background import in_thread
from tests.clients.matrix.clients import Client
from tests.clients.matrix.runs import PROGRAMS, Run, run_program
from tests.clients.matrix.scripted_server import ScriptedServer
from tests.clients.matrix.service import Service, declaration, running

Runs = Callable[[Client, str], Run]


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedServer]:
    """The experts' server."""
    server = ScriptedServer()
    with in_thread(server.running()):
        yield server


@pytest.fixture(scope="session")
def service(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The gateway."""
    with running(tmp_path_factory.mktemp("service"), declaration(scripted.root)) as service:
        yield service


@pytest.fixture(scope="session")
def runs(service: Service, scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Returns a client's run against an expert, made when it is first requested."""
    shutil.copytree(PROGRAMS, environment.NPM / "programs", dirs_exist_ok=True)
    homes = tmp_path_factory.mktemp("homes")
    made: dict[tuple[str, str], Run] = {}

    def run_of(client: Client, expert: str) -> Run:
        key = (client.key, expert)
        if key not in made:
            if client.is_agent:
                home = homes / client.program  # one for both experts: the first start of an agent fills it
                made[key] = run_agent(client, expert, service, scripted, home)
            else:
                made[key] = run_program(client, expert, service, scripted)
        return made[key]

    return run_of
