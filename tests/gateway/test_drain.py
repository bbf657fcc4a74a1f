"""The end of a gateway, with real processes and signals."""

import asyncio
import signal
from pathlib import Path

import aiohttp
import orjson
import pytest

from gateway.process.processes import abort, drain
from tests.fakes import gateway_of
from tests.gateway.served import Served, serving

pytestmark = pytest.mark.anyio

STREAMS = 6


async def started(served: Served, model: str, count: int) -> list[aiohttp.ClientResponse]:
    """Open `count` streams, and wait for the first chunk of each."""
    responses = await asyncio.gather(*(served.send_chat(model, stream=True) for _ in range(count)))
    for response in responses:
        await response.content.readuntil(b"\n\n")
    return list(responses)


async def refuses(served: Served) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # still queued when the listener closed
        return False
    writer.close()
    return False


async def ended(served: Served) -> int:
    return await asyncio.wait_for(served.process.wait(), 60)


async def test_streams_under_way_end_whole_and_are_recorded(tmp_path: Path) -> None:
    """Of a worker that is no fork, as on macOS, after a reload."""
    async with serving(tmp_path, environ={"SPAWN": "1"}) as served:
        served.process.send_signal(signal.SIGHUP)
        streams = await started(served, "drips", STREAMS)
        served.process.send_signal(signal.SIGTERM)
        rests = await asyncio.gather(*(response.read() for response in streams))
        assert all(rest.endswith(b"data: [DONE]\n\n") for rest in rests)
        assert await ended(served) == 0
        records = await served.records(STREAMS)
    assert [record.outcome for record in records] == ["ok"] * STREAMS


async def test_of_connections_that_were_open_idle_ones_are_closed_and_arriving_requests_are_served(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as served:
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", served.port)
        arriving, arriving_writer = await asyncio.open_connection("127.0.0.1", served.port)
        request = served.raw("good")
        idle_writer.write(request)
        assert (await idle.readuntil(b"\r\n")).endswith(b"200 OK\r\n")
        arriving_writer.write(request[:20])
        (stream,) = await started(served, "stalls", 1)
        served.process.send_signal(signal.SIGTERM)
        while not await refuses(served):
            pass
        arriving_writer.write(request[20:])
        async with asyncio.timeout(60):  # while the stream goes on
            last, _ = await asyncio.gather(arriving.read(), idle.read())
        assert last.startswith(b"HTTP/1.1 200 ")
        assert last.count(b"\r\nconnection: close\r\n") == 1
        assert served.process.returncode is None
        served.process.send_signal(signal.SIGTERM)
        assert await ended(served) == 128 + signal.SIGTERM
        with pytest.raises(aiohttp.ClientError):
            await stream.read()
        for writer in (idle_writer, arriving_writer):
            writer.close()


async def test_during_the_lame_duck_period_readiness_is_off_and_requests_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path, environ={"COE_DRAIN": "3"}) as served:
        served.process.send_signal(signal.SIGTERM)
        while (reported := await served.ready())["http"] == 200:
            pass
        assert reported["status"] == "not ready"
        async with served.send_chat("good") as response:
            assert response.status == 200
        assert await ended(served) == 0


async def test_new_work_after_the_end_of_the_drain_is_refused_with_503_and_a_closed_connection() -> None:
    async with gateway_of() as gateway:
        drain(gateway.services, lambda: None, lame_duck=0)
        assert (await gateway.chat("code")).status == 200
        abort(gateway.services)
        refused, undecided = await gateway.chat("code"), await gateway.post("/v1/route", b"{}")
    assert undecided.status == refused.status == 503
    assert refused.error["code"] == "draining"
    assert undecided.headers["connection"] == refused.headers["connection"] == "close"
    assert int(refused.headers["retry-after"]) >= 1
    assert [record.outcome for record in gateway.records] == ["ok", "draining"]


async def test_a_stream_that_does_not_end_in_time_ends_with_an_error_event() -> None:
    event = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
    async with gateway_of(coder=[event, asyncio.Event()], painter=asyncio.Event()) as gateway:
        drain(gateway.services, lambda: None, lame_duck=0, finish=0.01)
        begun, waiting = await asyncio.gather(gateway.chat("code", stream=True), gateway.chat("art"))
    assert orjson.loads(begun.chunks[-1].removeprefix(b"data: "))["error"]["code"] == "draining"
    assert waiting.status == 503
    assert waiting.error["code"] == "draining"
    assert gateway.experts["coder"].replies[0].closed
    assert gateway.experts["painter"].cancelled
    assert [record.outcome for record in gateway.records] == ["draining", "draining"]
