"""`GET /v1/stats`: the gateway's numbers of now, over all workers; `/v1/stats/stream` says them again and again.

A response of server-sent events that nobody can hold open by not reading.

One look at something that takes work, shared by all who look at the same time.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.errors import Draining, Overloaded
from gateway.endpoints.admin.counts import Counts, told
from gateway.endpoints.admin.operation import Operation, Schema, whole
from gateway.request.validation import checked

if TYPE_CHECKING:
    from gateway.parts import Parts
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from gateway.request.relay import EVENT_STREAM


class SharedSnapshot:
    """`take` makes what is seen; nothing is done while nobody looks."""

    def __init__(self, take: Callable[[], Awaitable[bytes]]) -> None:
        self._take = take
        self._seen = b""
        self._at = -math.inf
        self._taking: asyncio.Task[None] | None = None

    async def since(self, due: float) -> bytes:
        """What was taken at `due`, by the event loop's clock, or later. Raises what `take` raises."""
        while self._at < due:
            if self._taking is None:
                self._taking = asyncio.create_task(self._anew(), name="coe-look")
            await asyncio.shield(self._taking)  # who leaves meanwhile takes it from nobody
        return self._seen

    async def _anew(self) -> None:
        began = asyncio.get_running_loop().time()
        try:
            self._seen = await self._take()
            self._at = began
        finally:
            self._taking = None


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


LISTENERS = 64
"""At a time, in one process."""
LONGEST, MOST = 60, 100_000
_PATIENCE = 1.0
"""Most seconds until a listener sees that the process is about to end."""
_RETRY = 5.0


class Listening(BaseModel):
    """How to be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    interval: Annotated[int, Field(ge=1, le=LONGEST)] = 1
    events: Annotated[int, Field(ge=1, le=MOST)] | None = None


class Stats:
    """Every event is whole, so whoever misses one misses nothing; those due at the same second share one look."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current
        self._metrics = parts.metrics
        self._looks = SharedSnapshot(self._look)
        self._listening = 0

    async def now(self, _: Request) -> Response:
        found = await self._looks.since(asyncio.get_running_loop().time())
        return Response(found, media_type="application/json")

    async def stream(self, request: Request) -> Response:
        asked = checked(Listening, orjson.dumps(dict(request.query_params)))
        if self._current.leaving:
            raise Draining("this gateway is about to end; ask again", retry_after=_RETRY)
        if self._listening >= LISTENERS:
            raise Overloaded(f"{LISTENERS} others listen already; ask GET /v1/stats instead", retry_after=_RETRY)
        self._listening += 1
        return EventStream(self._events(asked), over=self._one_less)

    def _one_less(self) -> None:
        self._listening -= 1

    async def _events(self, asked: Listening) -> AsyncGenerator[bytes, None]:
        """The first at once, then one at every full multiple of the interval."""
        now, sent = asyncio.get_running_loop().time, 0
        due = now()
        while not self._current.leaving:
            if (wait := due - now()) > 0:
                await asyncio.sleep(min(wait, _PATIENCE))
                continue
            yield await self._looks.since(due)
            sent += 1
            if sent == asked.events:
                return
            due = (now() // asked.interval + 1) * asked.interval

    async def _look(self) -> bytes:
        found = told(Counts(await self._metrics.families()), self._current.serving.registry)
        gateway = {"host": socket.gethostname(), "id": self._metrics.registry.gateway}
        return orjson.dumps({"object": "stats", "time": time.time(), "gateway": gateway, **found})


_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_COUNTS: Schema = {"type": "object", "additionalProperties": _COUNT}
_NESTED: Schema = {"type": "object", "additionalProperties": _COUNTS}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_BUCKETS: Schema = {"type": "array", "items": _COUNT}
_BOUNDS: Schema = {"type": "array", "items": _NUMBER, "description": "Upper bounds of the buckets, in seconds."}
_HISTOGRAM = whole({"bounds": _BOUNDS, "counts": _BUCKETS})
_EXPERT = whole(
    {
        "id": _TEXT,
        "outcomes": _COUNTS,
        "fallbacks": _COUNT,
        "in_flight": _COUNT,
        "replicas": {"type": "object", "additionalProperties": _TEXT},
        "first_byte": _BUCKETS,
        "tokens": _COUNTS,
        "cost": _NUMBER,
    }
)
_STATS = whole(
    {
        "object": {"const": "stats"},
        "time": _NUMBER,
        "gateway": whole({"host": _TEXT, "id": _TEXT}),
        "categories": _TEXTS,
        "requests": whole(
            {"total": _COUNT, "apis": _COUNTS, "outcomes": _COUNTS, "reasons": _COUNTS, "flows": _NESTED}
        ),
        "in_flight": _COUNT,
        "queued": _COUNT,
        "routing": _HISTOGRAM,
        "request": _HISTOGRAM,
        "first_byte_bounds": _BOUNDS,
        "experts": {"type": "array", "items": _EXPERT},
        "retrieval": _COUNTS,
        "feedback": _COUNTS,
        "log": whole({"backlog": _COUNT, "dropped": _COUNT}),
        "troubles": _TEXTS,
        "serving": {"type": "array", "items": whole({"router": _TEXT, "config": _TEXT})},
        "artifacts": _NESTED,
        "workers": {"type": "array", "items": {"type": "object"}},
    }
)
OPERATIONS = (
    Operation("readStats", "GET", "/v1/stats", "The gateway's numbers of now, since its start", Stats.now, _STATS),
    Operation(
        "streamStats",
        "GET",
        "/v1/stats/stream",
        "The same again and again, every `interval` seconds, until `events` were sent",
        Stats.stream,
        None,
        query={
            "interval": {"type": "integer", "minimum": 1, "maximum": LONGEST, "default": 1},
            "events": {"type": "integer", "minimum": 1, "maximum": MOST},
        },
        problems=(400, 429, 503),
    ),
)
