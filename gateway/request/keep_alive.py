"""Keeps a silent stream alive: proxies and clients close connections that carry no bytes for a while.

`gateway.chat` wraps the `send` of every streamed request in a `KeepAlive`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

from starlette.types import Message, Send

from coe.experts.http.sse import EVENT_STREAM
from gateway.errors import Headers
from gateway.request.trace import Trace

RECHECK_INTERVAL = 0.5
"""Largest pause in seconds between two checks whether the status of a silent stream is final."""


def stream_head(headers: Headers, *, media_type: str = EVENT_STREAM) -> Message:
    """The start of a response that is sent in pieces."""
    fields = [(b"content-type", media_type.encode("latin-1")), (b"cache-control", b"no-cache"), *headers]
    return {"type": "http.response.start", "status": 200, "headers": fields}


class KeepAlive:
    """The `send` of one streamed request, as a context manager.

    After `interval` seconds in which nothing was sent it sends `event`, which clients ignore. Before the first event of
    the answer it sends the response headers too, but only while no other expert can take over from the one that is
    being called: from then on the status is 200, and a failure is an event of the stream. Silence of a client that does
    not read is not counted.
    """

    def __init__(self, trace: Trace, send: Send, *, event: bytes, interval: float) -> None:
        self._trace = trace
        self._send = send
        self._message: Message = {"type": "http.response.body", "body": event, "more_body": True}
        self._interval = interval
        self._clock = asyncio.get_running_loop().time
        self._latest = self._clock() - trace.elapsed_ms() / 1000
        """Time of the latest byte, by the event loop's clock; at first that of the request's arrival."""
        self._sending = asyncio.Lock()
        self._head_sent = False
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None  # no cycle of references

    async def send(self, message: Message) -> None:
        """Send a message of the answer. The headers are left out if they are sent already."""
        async with self._sending:
            if message["type"] == "http.response.start":
                if self._head_sent:
                    return
                self._head_sent = True
            await self._send(message)
            self._latest = self._clock()

    async def _watch(self) -> None:
        """Sends an event whenever the stream was silent for the interval."""
        with suppress(OSError):  # the client has left, which ends the request
            while True:
                if (pause := self._latest + self._interval - self._clock()) > 0:
                    await asyncio.sleep(pause)
                elif not self._head_sent and not self._trace.attempts.sole_expert:
                    await asyncio.sleep(min(self._interval, RECHECK_INTERVAL))
                else:
                    async with self._sending:
                        if self._latest + self._interval <= self._clock():
                            await self._emit()

    async def _emit(self) -> None:
        if not self._head_sent:
            self._head_sent, self._trace.status = True, 200
            await self._send(stream_head(self._trace.early_headers()))
        await self._send(self._message)
        self._latest = self._clock()
