"""A gateway process with few file descriptors, or none left."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.gateway import served as processes
from tests.gateway.served import ROOT, chat, serving

pytestmark = pytest.mark.anyio

LIMIT = 256
FULL = 3
"""A limit below the number of every free descriptor."""
DEADLINE = 60


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways are started under `ulimit -n 256`, soft and hard."""

    async def started(settings: dict[str, str], stderr: object = None) -> asyncio.subprocess.Process:
        return await limited_process("tests.gateway.words_server", settings, stderr, f"ulimit -n {LIMIT}")

    monkeypatch.setattr(processes, "_started", started)


async def limited_process(
    module: str, settings: dict[str, str], stderr: object, ulimit: str
) -> asyncio.subprocess.Process:
    command = f'{ulimit} && exec "$0" -m {module}'
    return await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        sys.executable,
        cwd=ROOT,
        env=os.environ | settings,
        stderr=stderr,  # type: ignore[arg-type]
    )


@contextmanager
def no_descriptor_left(worker: psutil.Process) -> Iterator[None]:
    """The worker can open no descriptor in this block, also where it closes another one."""
    worker.rlimit(psutil.RLIMIT_NOFILE, (FULL, LIMIT))
    yield
    worker.rlimit(psutil.RLIMIT_NOFILE, (LIMIT, LIMIT))


@pytest.mark.usefixtures("limited")
async def test_without_descriptors_the_true_cause_is_named_and_no_expert_is_blamed(tmp_path: Path) -> None:
    policy = {"max_attempts": 1, "keep_alive_interval": DEADLINE}  # or a slow failure is an event of a stream
    async with (
        serving(tmp_path, policy=policy) as served,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client,  # one connection, kept
    ):
        url = f"{served.url}/v1/chat/completions"
        async with client.get(f"{served.url}/health/live") as response:
            await response.read()
        with no_descriptor_left(served.workers[0]):
            for stream in (False, True) * 5:  # more failures than open a breaker
                async with client.post(url, json=chat("good", stream=stream)) as response:
                    reported = (await response.json())["error"]
                    assert (response.status, reported["code"]) == (503, "overloaded")
                    assert "no file descriptor left" in reported["message"]
                    assert response.headers["retry-after"] == "1"
            async with client.post(url, json=chat("auto")) as response:  # routed, with experts to fall back to
                await response.read()  # or the client closes the connection, and no other one can be accepted
                assert response.status == 503
            async with client.get(f"{served.url}/health/ready") as response:
                assert response.status == 200
        async with client.post(url, json=chat("good")) as response:
            assert response.status == 200
        assert await served.metric("coe_breaker_state") == 0
        assert not served.upstream.seen[1:]


@pytest.mark.usefixtures("limited")
async def test_more_clients_than_descriptors_are_all_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        highest = 0

        async def send_chat() -> int:
            nonlocal highest
            async with served.send_chat("drips", stream=True) as response:
                highest = max(highest, served.workers[0].num_fds())
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
                return response.status

        assert await asyncio.gather(*(send_chat() for _ in range(300))) == [200] * 300
        assert highest < LIMIT
        assert await served.metric("coe_breaker_state") == 0
