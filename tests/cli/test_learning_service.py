"""The whole learning line with real processes: a gateway, its clients' feedback, `coe retrain` and a rollback."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from coe.fleet.specs import free_port
from tests import forked
from tests.cli.logged_service import DECLARED, TRUTH, LoggedService
from tests.cli.test_retrain import RETRAINED_CHOICES
from tests.experts.faulty_server import FaultyServer
from tests.routers.conftest import WORDS, sentences

pytestmark = pytest.mark.anyio

SOON = 180.0
"""Time limit of every wait, in seconds."""
AT_ONCE = 20


@asynccontextmanager
async def coe(
    service: LoggedService, *words: str, output: int = asyncio.subprocess.DEVNULL, **environ: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that gets SIGTERM at the end of the block and must exit with 0."""
    process = await asyncio.create_subprocess_exec(
        *forked.python("coe.cli", *words, "--config", str(service.config)),
        env=os.environ | environ,
        stdout=output,
        stderr=output,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 2 * SOON) == 0


class Gateway:
    """`coe serve` in front of one server that all experts share."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self._url, self._client = url, client

    async def send_chat(self, text: str) -> dict[str, str]:
        """The answer's headers."""
        body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
        async with self._client.post(f"{self._url}/v1/chat/completions", json=body) as response:
            await response.read()
            assert response.status == 200
            return {name.lower(): value for name, value in response.headers.items()}

    async def rate(self, request_id: str, thumb: str) -> None:
        body = {"request_id": request_id, "thumb": thumb}
        async with self._client.post(f"{self._url}/v1/feedback", json=body) as response:
            assert response.status == 200, await response.text()

    async def until_ready(self) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    async with self._client.get(f"{self._url}/health/ready") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)

    async def until_answered_by(self, expert: str, category: str) -> None:
        """Wait until the expert answers the category, by the plan and not by exploration."""
        async with asyncio.timeout(SOON):
            while True:
                headers = await self.send_chat(sentences(category, count=1, seed=9)[0])
                if (headers["x-coe-expert"], headers["x-coe-reason"]) == (expert, "routed"):
                    return
                await asyncio.sleep(0.05)  # requests without a pause would delay the reload on a busy machine


@asynccontextmanager
async def serving(service: LoggedService) -> AsyncIterator[Gateway]:
    upstream = FaultyServer()
    runner = await upstream.start()
    service.declare(experts=[{**expert, "base_url": upstream.url} for expert in DECLARED["experts"]])
    port = str(free_port())
    try:
        async with coe(service, "serve", COE_PORT=port), aiohttp.ClientSession() as client:
            gateway = Gateway(f"http://127.0.0.1:{port}", client)
            await gateway.until_ready()
            yield gateway
    finally:
        await runner.cleanup()


async def use(gateway: Gateway, count: int) -> None:
    """Send requests of known categories, and rate their answers by the true quality of the expert."""
    rng, places = random.Random(0), asyncio.Semaphore(AT_ONCE)
    texts = [(name, text) for name in WORDS for text in sentences(name, count=count // len(WORDS), seed=1)]

    async def one(category: str, text: str, luck: float) -> None:
        async with places:
            headers = await gateway.send_chat(text)
            good = luck < TRUTH[headers["x-coe-expert"]].get(category, 0.2)
            await gateway.rate(headers["x-request-id"], "up" if good else "down")

    await asyncio.gather(*(one(*pair, rng.random()) for pair in texts))


async def test_a_running_gateway_serves_by_the_learned_plan_and_after_a_rollback_by_the_former_one(
    service: LoggedService,
) -> None:
    async with serving(service) as gateway:
        await use(gateway, 360)
        code, output = await retrained(service, "--json")
        assert code == 0, output
        found = json.loads(output)["assignment"]
        assert found["promoted"], found["sentence"]
        assert found["report"]["feedback"] == {"thumb": 360}
        for category in WORDS:
            await gateway.until_answered_by(RETRAINED_CHOICES[category], category)
        await asyncio.to_thread(service.run, "rollback", "assignment")
        await gateway.until_answered_by("generalist", "cooking")


async def retrained(service: LoggedService, *words: str) -> tuple[int | None, str]:
    """The exit status of `coe retrain` and its output."""
    process = await asyncio.create_subprocess_exec(
        *forked.python("coe.cli", "retrain", *words, "--config", str(service.config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()
