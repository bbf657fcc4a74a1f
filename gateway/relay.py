"""Answer bytes to the client as they come. After the first byte an error can only be told inside the stream."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing

from starlette.types import Send

from coe.core import Reply
from coe.errors import ExpertError
from coe.experts.sse import error_event
from gateway.errors import body_of

Headers = Iterable[tuple[bytes, bytes]]
EVENT_STREAM = "text/event-stream"


async def relay(reply: Reply, send: Send, *, headers: Headers) -> str:
    """Send a reply to its end; returns its outcome, `ok` or the code of the error that broke it off."""
    if reply.media_type == EVENT_STREAM:
        return await _relay_events(reply, send, headers=headers)
    body = b"".join([piece async for piece in reply.pieces()])
    await respond(send, status=200, body=body, headers=headers)
    return "ok"


async def _relay_events(reply: Reply, send: Send, *, headers: Headers) -> str:
    start = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-cache"), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": start})
    outcome = "ok"
    try:
        async with aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except ExpertError as error:
        outcome = error.code
        await send({"type": "http.response.body", "body": error_event(body_of(error)), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    return outcome


async def respond(send: Send, *, status: int, body: bytes, headers: Headers = ()) -> None:
    """A whole JSON response."""
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})
