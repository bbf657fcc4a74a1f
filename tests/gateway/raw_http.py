"""Helpers for tests of the HTTP server: small ASGI applications, and requests and responses as bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.server import Protocol, Server, open_listener
from tests.waiting import wait_until

GET = b"GET /%b HTTP/1.1\r\nhost: localhost\r\n\r\n"
CLOSING = b"GET /%b HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def whole_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Respond with the scope and the body that the application received, as JSON."""
    body = await whole_body(receive)
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    fields = ("method", "path", "http_version", "scheme", "client", "server")
    seen = {field: scope[field] for field in fields} | {"headers": headers, "body": body.decode("latin-1")}
    data = orjson.dumps(seen | {"query": scope["query_string"].decode(), "raw_path": scope["raw_path"].decode()})
    await send(start(200, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))))
    await send(part(data))


class RunningServer(Server):
    """A server with the task that it runs in."""

    task: asyncio.Task[None]

    def end(self) -> asyncio.Task[None]:
        """Stop serving; return the task, which ends with the server."""
        self.stop()
        return self.task

    @property
    def connections(self) -> list[Protocol]:
        return list(self.server_state.connections)  # type: ignore[arg-type]


@asynccontextmanager
async def served(app: ASGIApp, *, max_connections: int = 100) -> AsyncIterator[tuple[RunningServer, int]]:
    """A running server and its port."""
    listener = open_listener("127.0.0.1", 0, stalled_after=60)
    server, port = RunningServer(app, max_connections=max_connections), listener.getsockname()[1]
    server.task = asyncio.create_task(server.serve([listener]))
    await wait_until(lambda: server.started)
    try:
        yield server, port
    finally:
        await server.end()


async def answers(port: int, data: bytes, *, pieces: int = 1) -> bytes:
    """Send data, in pieces, and return all bytes that arrive until the connection closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with closing(writer):
        size = -(-len(data) // pieces)
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await writer.drain()
            if pieces > 1:
                await asyncio.sleep(0)
        async with asyncio.timeout(60):
            return await reader.read()


def split(answer: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Return the status line, the headers and the body of a response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    return status, dict(line.split(b": ", 1) for line in lines), body
