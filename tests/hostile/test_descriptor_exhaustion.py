"""A gateway process with few file descriptors."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.gateway import served as processes
from tests.gateway.served import ROOT, serving

pytestmark = pytest.mark.anyio

LIMIT = 256


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
