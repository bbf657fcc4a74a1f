"""Keeps a silent stream alive: proxies and clients close connections that carry no bytes for a while.

`gateway.chat` wraps the `send` of every streamed request in a `KeepAlive`. It costs a stream without
silence one clock reading per event.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from types import TracebackType
from typing import Self

from starlette.types import Message, Send

from coe.experts.http.sse import EVENT_STREAM
from gateway.dialects import Headers
from gateway.request.trace import Trace

_log = logging.getLogger("gateway")

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
        self._loop = asyncio.get_running_loop()
        self._latest = self._loop.time()
        """Time of the latest byte, by the event loop's clock; at first that of the request's arrival."""
        self._sending = False
        self._head_sent = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._latest -= self._trace.elapsed_ms() / 1000
        self._timer = self._loop.call_at(self._latest + self._interval, self._check)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._timer = self._task = None

    async def send(self, message: Message) -> None:
        """Send a message of the answer. The headers are left out if they are sent already."""
        if self._task is not None:
            await self._task
        if message["type"] == "http.response.start":
            if self._head_sent:
                return
            self._head_sent = True
        self._sending = True  # stays true if the client leaves
        await self._send(message)
        self._sending = False
        self._latest = self._loop.time()

    def _check(self) -> None:
        now, due = self._loop.time(), self._latest + self._interval
        if self._sending or now < due:
            self._timer = self._loop.call_at(max(due, now + min(self._interval, RECHECK_INTERVAL)), self._check)
        elif not self._head_sent and not self._trace.attempts.sole_expert:
            self._timer = self._loop.call_later(min(self._interval, RECHECK_INTERVAL), self._check)
        else:
            self._task = self._loop.create_task(self._emit())

    async def _emit(self) -> None:
        with suppress(OSError):  # the client has left, which ends the request
            if not self._head_sent:
                await self._send(stream_head(self._trace.early_headers()))
                self._head_sent, self._trace.status = True, 200
            await self._send(self._message)
        self._latest, self._task = self._loop.time(), None
        if self._timer is not None:
            self._timer = self._loop.call_later(self._interval, self._check)
