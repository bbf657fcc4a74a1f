"""A response of server-sent events that a client cannot hold open by not reading."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coe.experts.http.sse import EVENT_STREAM

SEND_SECONDS = 10.0
"""Time limit for a client to read an event; after it the stream ends."""


class EventStream(Response):
    """Sends each of `events`, the data of one line each, until they end, the client disconnects or it stops reading;
    then it calls `on_close`."""

    def __init__(self, events: AsyncGenerator[bytes, None], *, on_close: Callable[[], None]) -> None:
        super().__init__(media_type=EVENT_STREAM, headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending, disconnect = asyncio.create_task(self._send_all(send)), asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((sending, disconnect), return_when=asyncio.FIRST_COMPLETED)
        finally:
            disconnect.cancel()
            sending.cancel()
            await asyncio.gather(disconnect, sending, return_exceptions=True)
            self._on_close()
        if not sending.cancelled():
            sending.result()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    async with asyncio.timeout(SEND_SECONDS):
                        await send(_body(b"data: %b\n\n" % event, more=True))
            await send(_body(b"", more=False))
        except TimeoutError:
            return


def _body(data: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
