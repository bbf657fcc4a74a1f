"""The gateway on a real port, between a real client and a real server that misbehaves."""

import asyncio
import io
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson
import pytest

from coe.core import LogQuery, RoutingRecord
from coe.records import open_log
from tests.experts.faulty_server import FaultyServer
from tests.records.redis_server import MISSING, RedisServer, installed

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Served:
    url: str
    upstream: FaultyServer
    client: aiohttp.ClientSession
    process: asyncio.subprocess.Process
    folder: Path
    log: str

    def ask(self, model: str, *, stream: bool = False) -> "aiohttp.client._RequestContextManager":
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        return self.client.post(f"{self.url}/v1/chat/completions", json=body)

    async def records(self, count: int) -> list[RoutingRecord]:
        """The log's records once there are so many."""
        log = open_log(self.log, base=self.folder)
        while len(found := (await log.tail(LogQuery())).records) < count:
            await asyncio.sleep(0.02)
        await log.aclose()
        return list(found)


SQLITE = "sqlite:///routing-log.sqlite"


@asynccontextmanager
async def serving(folder: Path, *, log: str = SQLITE) -> AsyncIterator[Served]:
    upstream = FaultyServer()
    runner = await upstream.start()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = (sys.executable, "-m", "tests.gateway.words_server", str(port), upstream.url, str(folder), log)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as client:
            await until_ready(client, url)
            yield Served(url, upstream, client, process, folder, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        await runner.cleanup()


@pytest.fixture
async def served(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


async def until_ready(client: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with client.get(f"{url}/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)


async def test_plain_and_streamed_answers_pass_through(served: Served) -> None:
    async with served.ask("good") as response:
        assert response.status == 200
        assert (await response.json())["model"] == "good"
    async with served.ask("auto", stream=True) as response:
        assert response.content_type == "text/event-stream"
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    first, second = await served.records(2)
    assert (first.reason, second.reason) == ("pinned", "routed")
    assert (second.input_tokens, second.output_tokens) == (2, 4)


async def test_the_first_piece_arrives_while_the_expert_is_still_at_work(served: Served) -> None:
    async with served.ask("stalls", stream=True) as response:
        assert await response.content.readuntil(b"\n\n")
        assert not served.upstream.dropped.is_set()


async def test_a_client_that_leaves_mid_stream_stops_the_expert(served: Served) -> None:
    async with served.ask("stalls", stream=True) as response:
        await response.content.readuntil(b"\n\n")
        response.close()
    await asyncio.wait_for(served.upstream.dropped.wait(), 5)
    (record,) = await served.records(1)
    assert record.outcome == "aborted"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_first_piece_stops_the_expert(served: Served, stream: bool) -> None:
    task = asyncio.ensure_future(served.ask("silent", stream=stream))
    while not served.upstream.seen:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait_for(served.upstream.dropped.wait(), 5)
    (record,) = await served.records(1)
    assert record.outcome == "aborted"


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [("status-500", 503, "expert_unavailable"), ("text-noise", 502, "expert_garbage")],
)
async def test_a_failing_expert_is_an_openai_error(served: Served, model: str, status: int, code: str) -> None:
    async with served.ask(model) as response:
        assert response.status == status
        assert (await response.json())["error"]["code"] == code
        assert response.headers["x-coe-expert"] == model


@pytest.mark.parametrize("model", ["torn", "truncated"])
async def test_a_stream_that_breaks_says_so_in_its_last_event(served: Served, model: str) -> None:
    async with served.ask(model, stream=True) as response:
        assert response.status == 200
        events = (await response.read()).split(b"\n\n")
    assert orjson.loads(events[-2].removeprefix(b"data: "))["error"]["code"] == "expert_unavailable"
    assert b"half" not in b"".join(events)


async def test_a_50_mb_body_is_refused_and_the_process_goes_on(served: Served) -> None:
    headers = {"content-type": "application/json"}
    try:
        async with served.client.post(
            f"{served.url}/v1/chat/completions", data=io.BytesIO(b" " * 50_000_000), headers=headers
        ) as told:
            assert told.status == 413
    except aiohttp.ClientConnectionError:  # refused while the client was still sending
        pass
    async with served.ask("good") as response:
        assert response.status == 200


async def test_sigterm_ends_the_process_and_keeps_the_records(served: Served) -> None:
    for _ in range(20):
        async with served.ask("good") as response:
            assert response.status == 200
    served.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(served.process.wait(), 20) == 0
    assert len(await served.records(20)) == 20


@pytest.mark.skipif(not installed(), reason=MISSING)
async def test_while_redis_is_gone_requests_go_on_and_their_records_come_later(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    async with serving(tmp_path, log=redis.url) as served:
        for number in range(30):
            if number == 10:
                await served.records(10)
                redis.kill()
            if number == 20:
                redis.start()
            async with served.ask("good") as response:
                assert response.status == 200
        records = await served.records(30)
    redis.kill()
    assert len({record.request_id for record in records}) == len(records) == 30
