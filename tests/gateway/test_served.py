"""The gateway on a real port, between a real client and a real server that misbehaves."""

import asyncio
import io
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import orjson
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


async def test_the_first_piece_arrives_while_the_expert_is_still_at_work(served: Served) -> None:
    async with served.send_chat("stalls", stream=True) as response:
        assert await response.content.readuntil(b"\n\n")
        assert not served.upstream.dropped.is_set()


async def test_a_client_that_leaves_mid_stream_stops_the_expert(served: Served) -> None:
    async with served.send_chat("stalls", stream=True) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    await asyncio.wait_for(served.upstream.dropped.wait(), 60)
    (record,) = await served.records(1)
    assert record.outcome == "aborted"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_first_piece_stops_the_expert(served: Served, stream: bool) -> None:
    task = asyncio.ensure_future(served.send_chat("silent", stream=stream))
    while not served.upstream.seen:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait_for(served.upstream.dropped.wait(), 60)
    (record,) = await served.records(1)
    assert record.outcome == "aborted"


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [("status-500", 503, "expert_unavailable"), ("text-noise", 502, "expert_invalid_response")],
)
async def test_a_failing_expert_is_an_openai_error(served: Served, model: str, status: int, code: str) -> None:
    async with served.send_chat(model) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
        assert response.headers["x-coe-expert"] == model


@pytest.mark.parametrize("model", ["torn", "truncated"])
async def test_a_stream_that_breaks_off_ends_with_an_error_event(served: Served, model: str) -> None:
    async with served.send_chat(model, stream=True) as response:
        assert response.status == 200
        events = (await response.read()).split(b"\n\n")
    assert orjson.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "expert_unavailable"
    assert b"half" not in b"".join(events)


async def test_a_50_mb_body_is_refused_and_the_process_goes_on(served: Served) -> None:
    headers = {"content-type": "application/json"}
    try:
        async with served.client.post(
            f"{served.url}/v1/chat/completions", data=io.BytesIO(b" " * 50_000_000), headers=headers
        ) as raised:
            assert raised.status == 413
    except aiohttp.ClientConnectionError:  # refused while the client was still sending
        pass
    async with served.send_chat("good") as response:
        assert response.status == 200


async def test_sigterm_ends_the_process_and_keeps_the_records(served: Served) -> None:
    for _ in range(20):
        async with served.send_chat("good") as response:
            assert response.status == 200
    served.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(served.process.wait(), 60) == 0
    assert len(await served.records(20)) == 20


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
