"""The gateway on a real port, between a real client and a real server that misbehaves."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.served import Served, serving
from tests.records.redis_server import MISSING, RedisServer, installed
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


async def test_plain_and_streamed_answers_pass_through(served: Served) -> None:
    async with served.send_chat("good") as response:
        assert response.status == 200
        assert (await response.json())["model"] == "good"
    async with served.send_chat("auto", stream=True) as response:
        assert response.content_type == "text/event-stream"
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    first, second = await served.records(2)
    assert (first.reason, second.reason) == ("pinned", "routed")
    assert (second.input_tokens, second.output_tokens) == (2, 4)


async def test_workers_that_are_no_forks_serve_reload_and_end(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_WORKERS": "2", "SPAWN": "1"}) as served:
        await wait_until(lambda: len(served.workers) >= 2, pause=0.02)
        async with served.send_chat("good") as response:
            assert response.status == 200
        served.process.send_signal(signal.SIGHUP)
        served.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(served.process.wait(), 60) == 0


@pytest.mark.skipif(not installed(), reason=MISSING)
async def test_while_redis_is_gone_requests_go_on_and_their_records_come_later(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    async with serving(tmp_path, log={"url": redis.url}) as served:
        for number in range(30):
            if number == 10:
                await served.records(10)
                redis.kill()
            if number == 20:
                redis.start()
            async with served.send_chat("good") as response:
                assert response.status == 200
        records = await served.records(30)
    redis.kill()
    assert len({record.request_id for record in records}) == len(records) == 30
