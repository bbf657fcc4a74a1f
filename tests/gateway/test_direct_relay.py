"""Ordinary events of a stream go from the expert's connection to the client's without a task between them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import orjson
import pytest
from starlette.types import Message

from coe.experts.outcomes import Breaker
from gateway.request.keep_alive import KeepAlive
from gateway.server import Cycle
from tests.gateway.gateway_over import gateway_over
from tests.gateway.raw_http import served
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"%d"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
BODY = orjson.dumps({"model": "auto", "stream": True, "messages": [{"role": "user", "content": "code"}]})


@asynccontextmanager
async def upstream(proceeds: asyncio.Semaphore, *, events: int) -> AsyncIterator[str]:
    """A server that sends one event each time `proceeds` allows it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(asyncio.IncompleteReadError):  # at the end of the connection
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.read(2**16)
                writer.write(HEAD)
                for event in (*(EVENT % number for number in range(events)), LAST):
                    await proceeds.acquire()
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        finally:
            for _ in range(events + 1):  # a waiting handler would delay the server's end for ever, from Python 3.12 on
                proceeds.release()


async def relayed(port: int, proceeds: asyncio.Semaphore, *, events: int) -> bytes:
    """The body that a client gets, which waits for each event before the expert sends the next one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(BODY), BODY)
        )
        for number in range(events):
            proceeds.release()
            await asyncio.wait_for(reader.readuntil(b'"content":"%d"' % number), 60)
        proceeds.release()
        return await asyncio.wait_for(reader.read(), 60)


async def test_events_are_relayed_directly_and_leave_no_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    direct, through_the_task = list[bytes](), list[bytes | None]()
    sink, send = Cycle.sink, Cycle.send

    def sent_now(cycle: Cycle, body: bytes) -> bool:
        direct.append(body)
        return sink(cycle, body)

    async def sent(cycle: Cycle, message: Message) -> None:
        through_the_task.append(message.get("body"))
        await send(cycle, message)

    monkeypatch.setattr(Cycle, "sink", sent_now)
    monkeypatch.setattr(Cycle, "send", sent)
    proceeds = asyncio.Semaphore(0)
    async with (
        upstream(proceeds, events=5) as url,
        gateway_over({"coder": url}) as gateway,
        served(gateway.app) as (_, port),
    ):
        gc.collect()
        gc.disable()
        try:
            rest = await relayed(port, proceeds, events=5)
            await wait_until(lambda: not any(type(found) in (Cycle, KeepAlive) for found in gc.get_objects()))
        finally:
            gc.enable()
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert direct == [(EVENT % number).replace(b'"m"', b'"coder"') for number in range(1, 5)]
    assert through_the_task == [None, (EVENT % 0).replace(b'"m"', b'"coder"'), LAST, b""]
    assert gateway.records[0].outcome == "ok"


async def test_a_failed_write_to_the_client_does_not_count_against_the_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = list[str]()

    def broken(cycle: Cycle, body: bytes) -> bool:
        raise RuntimeError("the client's transport is closed")

    monkeypatch.setattr(Cycle, "sink", broken)
    monkeypatch.setattr(Breaker, "failed", lambda *_, **__: failures.append("failed"))
    proceeds = asyncio.Semaphore(0)
    async with (
        upstream(proceeds, events=2) as url,
        gateway_over({"coder": url}) as gateway,
        served(gateway.app) as (_, port),
    ):
        with pytest.raises(asyncio.IncompleteReadError):
            await relayed(port, proceeds, events=2)
        await wait_until(lambda: bool(gateway.records))
    record = gateway.records[0]
    assert (record.outcome, record.cause, failures) == ("aborted", "", [])
