"""Answers that are held whole: bounded together, shared among callers, and counted until the client has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from coe.errors import DeadlineExceeded
from coe.experts import ReplicatedExpert
from coe.experts.http.replies import SMALL_ANSWER
from gateway.chat import PIECE_BYTES
from gateway.request import admission
from gateway.request.admission import AnswerPool
from gateway.server import Protocol
from tests.fakes import Gateway, Response
from tests.gateway.gateway_over import gateway_over
from tests.gateway.raw_http import served
from tests.gateway.two_keys import CHAT, KEYS, bearer
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

MB = 2**20
UNREAD = 8 * MB
"""More than the kernel buffers for a client that does not read."""
FLOOD = 40


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer as the message says: `endless`, or with so many bytes."""
    body = await request.json()
    text, stream = body["messages"][-1]["content"], body.get("stream", False)
    response = web.StreamResponse()
    response.content_type = "text/event-stream" if stream else "application/json"
    await response.prepare(request)
    size = 0 if text == "endless" else int(text)
    written = (
        plain(size) if not stream else event("first") + event("x" * size) + event("", "stop") + b"data: [DONE]\n\n"
    )
    if text == "endless":
        written = event("first") + b"data: " if stream else written[:-20]
    await response.write(written)
    while text == "endless":
        await response.write(b"x" * SMALL_ANSWER)
    return response


def plain(size: int) -> bytes:
    return orjson.dumps({"choices": [{"message": {"content": "x" * size}, "finish_reason": "stop"}]})


def event(text: str, finish: str | None = None) -> bytes:
    return b"data: %b\n\n" % orjson.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


@asynccontextmanager
async def gateway(**limits: Any) -> AsyncIterator[Gateway]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        async with gateway_over({"generalist": url}, access={"keys": KEYS}, limits=limits) as opened:
            yield opened
    finally:
        await runner.cleanup()


async def send(one: Gateway, key: str, text: str, *, stream: bool = False) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "stream": stream}
    return await one.post(CHAT, orjson.dumps(body), headers=bearer(key))


def expert_of(one: Gateway) -> ReplicatedExpert:
    expert = one.services.snapshot.composition.experts["generalist"]
    assert isinstance(expert, ReplicatedExpert)
    return expert


# ------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize("stream", [False, True])
async def test_endless_answers_of_one_key_end_with_503_and_leave_memory_for_the_answers_of_others(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_ANSWER_BYTES", MB)  # so that 2 MiB are the memory, and a key has half of it
    held = list[int]()
    grow = AnswerPool.grow

    def noting(pool: AnswerPool, *args: Any) -> None:
        grow(pool, *args)
        held.append(pool.held)

    monkeypatch.setattr(AnswerPool, "grow", noting)
    async with gateway(body_memory_mb=1) as one, asyncio.timeout(60):
        flood = [asyncio.ensure_future(send(one, "mallory", "endless", stream=stream)) for _ in range(FLOOD)]
        while not all(task.done() for task in flood):
            for size in (2, 4 * SMALL_ANSWER):
                assert (await send(one, "alice", str(size))).status == 200
        ended = [task.result() for task in flood]
        if stream:
            assert all(b'"answer_memory_full"' in response.chunks[-1] for response in ended)
        else:
            assert {(response.status, response.error["code"]) for response in ended} == {(503, "answer_memory_full")}
            assert {response.headers["x-coe-attempts"] for response in ended} == {"1"}
            assert all(int(response.headers["retry-after"]) >= 1 for response in ended)
            assert "limits.body_memory_mb" in ended[0].error["message"]
        assert {record.cause for record in one.records if record.outcome == "answer_memory_full"} == {"gateway_limit"}
        assert max(held) <= 1.5 * MB
        assert one.services.answers.held == 0
        assert expert_of(one).replicas[0].breaker.state == "closed"
        assert not expert_of(one).incidents.active
        assert (await send(one, "mallory", str(4 * SMALL_ANSWER))).status == 200


# ------------------------------------------------------------------------------------------------- slow clients


@asynccontextmanager
async def unread(one: Gateway, *, stream: bool) -> AsyncIterator[tuple[asyncio.StreamReader, Protocol]]:
    """An answer of UNREAD bytes whose client has read only its head, over a real socket."""
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": str(UNREAD)}], "stream": stream})
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer mallory\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    async with served(one.app) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
        writer.write(head.encode() + body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await wait_until(lambda: server.connections)
        (connection,) = server.connections
        await wait_until(lambda: connection.flow.write_paused)
        yield reader, connection
        writer.transport.abort()
        await wait_until(lambda: not server.server_state.tasks)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_counted_and_holds_its_permit_until_its_client_has_read_it(stream: bool) -> None:
    async with gateway() as one, asyncio.timeout(60):
        async with unread(one, stream=stream) as (reader, connection):
            await asyncio.sleep(0.1)  # nothing more happens
            assert one.services.answers.held >= UNREAD
            assert one.services.admission.in_use == 1
            assert connection.transport.get_write_buffer_size() < 2 * PIECE_BYTES
            assert len(await reader.read()) > UNREAD
            await wait_until(lambda: not one.services.answers.held)
        assert one.records[0].outcome == "ok"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_or_is_too_slow_returns_the_memory_and_gets_nothing_more(stream: bool) -> None:
    async with gateway() as one, asyncio.timeout(60):
        async with unread(one, stream=stream):
            assert one.services.answers.held
        await wait_until(lambda: len(one.records) == 1)
        assert not one.services.answers.held
        async with unread(one, stream=stream) as (reader, _):
            (request,) = one.services.admission.active
            request.cancel(DeadlineExceeded("too slow"))
            await wait_until(lambda: len(one.records) == 2)
            assert (one.records[1].outcome, one.services.answers.held) == ("deadline_exceeded", 0)
            rest = await reader.read()
        assert len(rest) < UNREAD
        assert b"too slow" not in rest
