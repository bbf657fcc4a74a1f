"""Connections of the HTTP server with faulty clients or applications, and events at an unfavourable moment."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import server as servers
from gateway.server import MAX_PIPELINED
from tests.gateway.raw_http import GET, answers, echo, part, served, split, start
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio

LIMIT = 20
"""Seconds allowed for steps that happen at once, fewer than any time limit of the server that a fault would reach."""
CHUNKED = b"POST /%b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of the gateway."""
    return "asyncio", {"use_uvloop": True}


def responds(body: bytes, *headers: tuple[bytes, bytes], seen: list[str] | None = None) -> ASGIApp:
    """Return an application that responds without reading the body, and appends the paths to `seen`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if seen is not None:
            seen.append(scope["path"])
        await send(start(200, (b"content-length", b"%d" % len(body)), *headers))
        await send(part(body))

    return app


# --------------------------------------------------------------------------------------- application


async def test_a_broken_response_to_http_1_0_does_not_look_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        await send(part(b"half", more=True))
        await asyncio.sleep(0.05)
        raise ValueError

    async with served(app) as (_, port):
        with pytest.raises(ConnectionResetError):
            await answers(port, b"GET / HTTP/1.0\r\n\r\n")


# ---------------------------------------------------------------------------------------- last request


async def test_a_client_that_pipelines_too_many_requests_gets_the_responses_up_to_the_limit() -> None:
    """If the connection closed while bytes arrive, it would be reset, and responses in transit would be lost."""
    data = b"".join(GET % (b"x" * 1000) for _ in range(5000))
    async with served(responds(bytes(100_000))) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        await asyncio.sleep(0.2)
        answer = await reader.read()
        writer.close()
    assert answer.count(b"HTTP/1.1 200 OK") == answer.count(bytes(100_000)) == MAX_PIPELINED + 1


async def test_the_response_before_an_invalid_request_has_connection_close() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    async with served(app) as (server, port):
        answer = asyncio.create_task(answers(port, GET % b"first" + CHUNKED % b"second" + b"no number\r\n"))
        await wait_until(lambda: server.server_state.tasks)
        (connection,) = server.connections
        await asyncio.wait_for(wait_until(connection.transport.is_reading), LIMIT)  # to detect that the client leaves
        go_on.set()
        status, headers, _ = split(await answer)
    assert (status, headers[b"connection"]) == (b"HTTP/1.1 200 OK", b"close")


# --------------------------------------------------------------------------------------------- expect


async def test_a_refused_request_gets_no_100_continue(caplog: pytest.LogCaptureFixture) -> None:
    request = (CHUNKED % b"")[:-2] + b"expect: 100-continue\r\n\r\nno number\r\n"
    async with served(echo) as (_, port):
        answer = await answers(port, request)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"100 Continue" not in answer
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# ------------------------------------------------------------------------------------------- shutdown


@pytest.mark.parametrize("client", ["reads nothing", "sends half a body"])
async def test_shutdown_does_not_wait_for_a_client_that_does_nothing(
    client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records are written after the shutdown, and the parent kills a worker that takes too long."""
    monkeypatch.setattr(servers, "STOPPING_SECONDS", 0.2)
    request = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf"
    with socket.socket() as peer:
        async with served(responds(bytes(20_000_000))) as (server, port):
            peer.setblocking(False)
            await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", port))
            peer.send(GET % b"" if client == "reads nothing" else request)
            await wait_until(lambda: server.connections)
            (connection,) = server.connections
            await wait_until(lambda: connection.flow.write_paused and not server.server_state.tasks)
            await asyncio.wait_for(server.end(), LIMIT)
            assert not server.connections


async def test_requests_on_connections_that_wait_to_be_accepted_at_shutdown_are_served() -> None:
    async with served(echo) as (server, port):
        await asyncio.sleep(0)
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]  # the event loop accepts none yet
        for client in clients:
            client.send(GET % b"late")
        for response in await asyncio.wait_for(_responses(clients, server.end()), LIMIT):
            assert b'"path":"/late"' in response
            assert b"\r\nconnection: close\r\n" in response


async def _responses(clients: list[socket.socket], ending: asyncio.Task[None]) -> list[bytes]:
    responses = []
    for client in clients:
        reader, writer = await asyncio.open_connection(sock=client)
        responses.append(await reader.read())
        writer.close()
    await ending
    return responses
