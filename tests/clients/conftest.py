"""A model server and the gateway before it, both on real ports, for all tests of the folder."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.fleet.specs import free_port
from tests import forked
from tests.clients.model_server import ModelServer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="package")
def upstream() -> Iterator[ModelServer]:
    """In a loop of its own: the clients under test block."""
    server, loop = ModelServer(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    yield server
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="package")
def gateway(upstream: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    port = free_port()
    folder = tmp_path_factory.mktemp("gateway")
    command = forked.python("tests.clients.gateway_server", str(port), upstream.url, str(folder))
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            _until_ready(f"http://127.0.0.1:{port}/health/ready", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError("the gateway did not become ready")
