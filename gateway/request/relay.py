"""Answer bytes to the client as they come."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

from starlette.types import Send

from coe.core import Reply

Headers = Iterable[tuple[bytes, bytes]]
EVENT_STREAM = "text/event-stream"


async def relay(reply: Reply, send: Send, *, headers: Headers) -> None:
    """Send a reply to its end. Raises the ExpertError that breaks it off; of a stream the headers are out by then.

    `send` waits for the socket, so a client that reads slowly holds up the expert and not this process's memory.
    """
    if reply.media_type != EVENT_STREAM:
        body = b"".join([chunk async for chunk in reply.chunks()])
        await respond(send, status=200, body=body, headers=headers)
        return
    start = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-cache"), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": start})
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def respond(send: Send, *, status: int, body: bytes, headers: Headers = ()) -> None:
    """A whole JSON response."""
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})
