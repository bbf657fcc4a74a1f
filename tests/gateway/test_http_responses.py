"""Responses of the HTTP server of a worker process, and its shutdown."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.gateway.raw_http import CLOSING, GET, answers, echo, part, served, split, start
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


# ----------------------------------------------------------------------------------------- responses


def streams(*chunks: bytes, headers: tuple[tuple[bytes, bytes], ...] = (), status: int = 200) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(status, *headers))
        for chunk in chunks:
            await send(part(chunk, more=True))
        await send(part(b""))

    return app


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
async def test_a_header_with_a_line_break_is_never_sent(value: bytes) -> None:
    async with served(streams(b"one", headers=((b"x-name", value),))) as (_, port):
        answer = await answers(port, CLOSING % b"")
    assert answer == b""


async def test_an_application_that_fails_is_a_500_or_a_broken_connection() -> None:
    def failing(*messages: Message) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in messages:
                await send(message)
            raise ValueError

        return app

    async with served(failing()) as (_, port):
        assert (await answers(port, CLOSING % b"")).startswith(b"HTTP/1.1 500 Internal Server Error")
    async with served(failing(start(200, (b"content-length", b"3")))) as (_, port):
        assert split(await answers(port, CLOSING % b""))[2] == b""  # shorter than declared
    async with served(failing(start(), part(b"one", more=True))) as (_, port):
        answer = await answers(port, GET % b"")
    assert answer.endswith(b"3\r\none\r\n")  # without the end of a chunked body


async def test_a_slow_client_slows_down_the_application() -> None:
    sent = itertools.count()
    latest = 0

    async def floods(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal latest
        await send(start())
        for latest in sent:
            await send(part(bytes(2**16), more=True))
            assert latest < 10_000

    async with served(floods) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(GET % b"")

        def stopped() -> Callable[[], bool]:
            previous = -1

            def check() -> bool:
                nonlocal previous
                before, previous = previous, latest
                return 0 < before == latest

            return check

        await wait_until(stopped(), pause=0.3)
        assert latest < 1000
        (task,) = server.server_state.tasks
        task.cancel()
        writer.transport.abort()


# ------------------------------------------------------------------------------------------- shutdown


async def test_shutdown_waits_for_responses_closes_idle_connections_and_serves_a_head_that_is_arriving() -> None:
    go_on = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/waits":
            await go_on.wait()
        await echo(scope, receive, send)

    async with served(waits) as (server, port):
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        idle_writer.write(GET % b"")
        await idle.readuntil(b"}")
        arriving, arriving_writer = await asyncio.open_connection("127.0.0.1", port)
        arriving_writer.write((GET % b"late")[:10])
        running, running_writer = await asyncio.open_connection("127.0.0.1", port)
        running_writer.write(GET % b"waits")
        await wait_until(lambda: len(server.connections) == 3 and server.server_state.tasks)
        await asyncio.sleep(0.05)
        ending = server.end()
        assert await asyncio.wait_for(idle.read(), 60) == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        arriving_writer.write((GET % b"late")[10:])
        late = split(await asyncio.wait_for(arriving.read(), 60))
        assert (late[0], late[1][b"connection"]) == (b"HTTP/1.1 200 OK", b"close")
        assert not ending.done()
        go_on.set()
        assert split(await asyncio.wait_for(running.read(), 60))[1][b"connection"] == b"close"
        await asyncio.wait_for(ending, 60)
        for writer in (idle_writer, arriving_writer, running_writer):
            writer.close()
