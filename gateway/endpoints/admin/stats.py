"""Current numbers of the gateway: `GET /v1/stats` and `/v1/stats/stream`.

Numbers are summed over all workers. The stream sends them as server-sent events, and a client cannot hold it open by
not reading.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coe.errors import Draining, Overloaded
from coe.experts.http.sse import EVENT_STREAM
from gateway.endpoints.admin.counts import Counts, stats_of
from gateway.endpoints.handler import json_response, query_of
from gateway.request.body import RequestModel
from gateway.services import Services

SEND_SECONDS = 10.0
"""Time limit for a client to read an event; after it the stream ends."""
MAX_LISTENERS = 64
"""Open streams of one process."""
MAX_INTERVAL_SECONDS, MAX_EVENTS = 60, 100_000
_MAX_SLEEP_SECONDS = 1.0
"""A stream ends at most this long after the process begins to drain."""
_RETRY_AFTER = 5.0


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


class SharedSnapshot:
    """A snapshot that `take` makes, shared by all who wait for it at the same time; made only on demand."""

    def __init__(self, take: Callable[[], Awaitable[bytes]]) -> None:
        self._take = take
        self._latest = b""
        self._taken_at = -math.inf
        self._taking: asyncio.Task[None] | None = None

    async def since(self, due: float) -> bytes:
        """A snapshot taken at `due`, by the event loop's clock, or later. Raises what `take` raises."""
        while self._taken_at < due:
            if self._taking is None:
                self._taking = asyncio.create_task(self._refresh(), name="coe-stats")
            await asyncio.shield(self._taking)  # a client that disconnects must not cancel it for others
        return self._latest

    async def _refresh(self) -> None:
        began = asyncio.get_running_loop().time()
        try:
            self._latest = await self._take()
            self._taken_at = began
        finally:
            self._taking = None


class StreamQuery(RequestModel):
    """Interval and number of events; without a number the stream does not end."""

    interval: Annotated[int, Field(ge=1, le=MAX_INTERVAL_SECONDS)] = 1
    events: Annotated[int, Field(ge=1, le=MAX_EVENTS)] | None = None


class Stats:
    """Every event is complete, so a missed one loses nothing; events of the same second share a snapshot."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._metrics = services.metrics
        self._snapshot = SharedSnapshot(self._take)
        self._listeners = 0

    async def get(self, _: Request) -> Response:
        """Current numbers of the gateway, counted since its start."""
        return json_response(await self._snapshot.since(asyncio.get_running_loop().time()))

    async def stream(self, request: Request) -> Response:
        """Sends a snapshot every `interval` seconds, until `events` were sent."""
        query = query_of(request, StreamQuery)
        if self._services.leaving:
            raise Draining("this gateway is shutting down; send the request again", retry_after=_RETRY_AFTER)
        if self._listeners >= MAX_LISTENERS:
            why = f"{MAX_LISTENERS} other streams are open; request GET /v1/stats instead"
            raise Overloaded(why, retry_after=_RETRY_AFTER)
        self._listeners += 1
        return EventStream(self._events(query), on_close=self._close)

    def _close(self) -> None:
        self._listeners -= 1

    async def _events(self, query: StreamQuery) -> AsyncGenerator[bytes, None]:
        """The first at once, then one at every full multiple of the interval."""
        now, sent = asyncio.get_running_loop().time, 0
        due = now()
        while not self._services.leaving:
            if (wait := due - now()) > 0:
                await asyncio.sleep(min(wait, _MAX_SLEEP_SECONDS))
                continue
            yield await self._snapshot.since(due)
            sent += 1
            if sent == query.events:
                return
            due = (now() // query.interval + 1) * query.interval

    async def _take(self) -> bytes:
        found = stats_of(Counts(await self._metrics.families()), self._services.snapshot.registry)
        gateway = {"host": socket.gethostname(), "id": self._metrics.registry.gateway}
        return orjson.dumps({"object": "stats", "time": time.time(), "gateway": gateway, **found})
