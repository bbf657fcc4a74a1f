"""A response of server-sent events that nobody can hold open by not reading."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.request.relay import EVENT_STREAM

STALLED = 10.0
"""Seconds that an event may wait for a client that does not read; then it is let go."""


class EventStream(Response):
    """Sends each of `events` (its data, one line) until they end, the client leaves or it reads no more; `over` is
    called then."""

    def __init__(self, events: AsyncGenerator[bytes, None], *, over: Callable[[], None]) -> None:
        super().__init__(media_type=EVENT_STREAM, headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending, leaving = asyncio.create_task(self._all(send)), asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            await asyncio.gather(leaving, sending, return_exceptions=True)
            self._over()
        if not sending.cancelled():
            sending.result()

    async def _all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    async with asyncio.timeout(STALLED):
                        await send(_body(b"data: %b\n\n" % event, more=True))
            await send(_body(b"", more=False))
        except TimeoutError:
            return


def _body(data: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
