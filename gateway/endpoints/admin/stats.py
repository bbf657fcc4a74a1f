"""`GET /v1/stats`: current numbers of the gateway, summed over all workers. `/v1/stats/stream` sends them as events."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from coe.errors import Draining, Overloaded
from gateway.endpoints.admin.counts import Counts, stats_of
from gateway.endpoints.admin.event_stream import EventStream
from gateway.endpoints.http import EVENTS, json_response, query_of
from gateway.endpoints.operation import Operation, Schema, Success, json_success, object_schema, problems
from gateway.parts import Parts

MAX_LISTENERS = 64
"""Open streams of one process."""
MAX_INTERVAL_SECONDS, MAX_EVENTS = 60, 100_000
_MAX_SLEEP_SECONDS = 1.0
"""A stream ends at most this long after the process begins to drain."""
_RETRY_AFTER = 5.0


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
            await asyncio.shield(self._taking)  # a client that disconnects cancels it for nobody else
        return self._latest

    async def _refresh(self) -> None:
        began = asyncio.get_running_loop().time()
        try:
            self._latest = await self._take()
            self._taken_at = began
        finally:
            self._taking = None


class StreamQuery(BaseModel):
    """How often to send an event, and how many; without a number the stream does not end."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    interval: Annotated[int, Field(ge=1, le=MAX_INTERVAL_SECONDS)] = 1
    events: Annotated[int, Field(ge=1, le=MAX_EVENTS)] | None = None


class Stats:
    """Every event is complete, so a missed one is no loss; events that are due in the same second share a snapshot."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current
        self._metrics = parts.metrics
        self._snapshot = SharedSnapshot(self._take)
        self._listeners = 0

    async def get(self, _: Request) -> Response:
        """`GET /v1/stats`."""
        return json_response(await self._snapshot.since(asyncio.get_running_loop().time()))

    async def stream(self, request: Request) -> Response:
        """`GET /v1/stats/stream`."""
        query = query_of(request, StreamQuery)
        if self._current.leaving:
            raise Draining("this gateway is shutting down; send the request again", retry_after=_RETRY_AFTER)
        if self._listeners >= MAX_LISTENERS:
            why = f"{MAX_LISTENERS} other streams are open; request GET /v1/stats instead"
            raise Overloaded(why, retry_after=_RETRY_AFTER)
        self._listeners += 1
        return EventStream(self._events(query), on_close=self._closed)

    def _closed(self) -> None:
        self._listeners -= 1

    async def _events(self, query: StreamQuery) -> AsyncGenerator[bytes, None]:
        """The first at once, then one at every full multiple of the interval."""
        now, sent = asyncio.get_running_loop().time, 0
        due = now()
        while not self._current.leaving:
            if (wait := due - now()) > 0:
                await asyncio.sleep(min(wait, _MAX_SLEEP_SECONDS))
                continue
            yield await self._snapshot.since(due)
            sent += 1
            if sent == query.events:
                return
            due = (now() // query.interval + 1) * query.interval

    async def _take(self) -> bytes:
        found = stats_of(Counts(await self._metrics.families()), self._current.serving.registry)
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
_HISTOGRAM = object_schema({"bounds": _BOUNDS, "counts": _BUCKETS})
_EXPERT = object_schema(
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
_STATS = object_schema(
    {
        "object": {"const": "stats"},
        "time": _NUMBER,
        "gateway": object_schema({"host": _TEXT, "id": _TEXT}),
        "categories": _TEXTS,
        "requests": object_schema(
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
        "log": object_schema({"backlog": _COUNT, "dropped": _COUNT}),
        "warnings": _TEXTS,
        "serving": {"type": "array", "items": object_schema({"router": _TEXT, "config": _TEXT})},
        "artifacts": _NESTED,
        "workers": {"type": "array", "items": {"type": "object"}},
    }
)
OPERATIONS = (
    Operation(
        name="readStats",
        method="GET",
        path="/v1/stats",
        summary="Current numbers of the gateway, counted since its start",
        resource=Stats,
        handler=Stats.get,
        scope="admin",
        responses=json_success("The numbers.", _STATS),
    ),
    Operation(
        name="streamStats",
        method="GET",
        path="/v1/stats/stream",
        summary="The same every `interval` seconds, until `events` were sent",
        resource=Stats,
        handler=Stats.stream,
        scope="admin",
        responses={200: Success("Events, each with the whole of /v1/stats.", {EVENTS: object_schema({"data": _TEXT})})},
        query=StreamQuery,
        problems=problems(400, _429="Too many streams are open.", _503="The gateway is shutting down."),
    ),
)
