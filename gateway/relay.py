"""Answer bytes to the client as they come. After the first byte an error can only be told inside the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing

from starlette.types import Send

from coe.core import Reply
from coe.errors import DeadlineExceeded, ExpertError, RequestError

Headers = Iterable[tuple[bytes, bytes]]
EVENT_STREAM = "text/event-stream"


async def relay(
    reply: Reply, send: Send, *, headers: Headers, until: float, error_event: Callable[[RequestError], bytes]
) -> str:
    """Send a reply to its end, or until the event loop's clock shows `until`; returns its outcome, `ok` or the code of
    the error that broke it off."""
    if reply.media_type == EVENT_STREAM:
        return await _relay_events(reply, send, headers=headers, until=until, error_event=error_event)
    body = b"".join([piece async for piece in reply.pieces()])
    await respond(send, status=200, body=body, headers=headers)
    return "ok"


async def _relay_events(
    reply: Reply, send: Send, *, headers: Headers, until: float, error_event: Callable[[RequestError], bytes]
) -> str:
    start = [(b"content-type", EVENT_STREAM.encode()), (b"cache-control", b"no-cache"), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": start})
    broken: RequestError | None = None
    try:
        async with asyncio.timeout_at(until), aclosing(reply.pieces()) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    except ExpertError as error:
        broken = error
    except TimeoutError:
        broken = DeadlineExceeded("the answer was not complete within the time this request had")
    last = b"" if broken is None else error_event(broken)
    await send({"type": "http.response.body", "body": last, "more_body": False})
    return "ok" if broken is None else broken.code


async def respond(send: Send, *, status: int, body: bytes, headers: Headers = ()) -> None:
    """A whole JSON response."""
    start = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})
