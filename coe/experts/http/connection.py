"""One connection of the HTTP client to an expert's server: exchanges, buffers, time limits and reuse."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import cast

from coe.experts.http.parser import ProtocolError, ResponseParser

WRITE_SIZE = 2**18
"""Bytes of a request written at a time, so that a large body does not delay other requests."""
MAX_UNREAD_BYTES = 2**17
"""Bytes of a response that wait for their reader before reading from the socket is paused."""
IDLE_TIMEOUT = 30.0
"""Seconds after which an idle connection is closed."""
MAX_IDLE_CONNECTIONS = 256
"""Idle connections per server; further ones are closed."""


class LimitExceeded(Exception):
    """An exchange reached its time limit. No OSError: the connection works."""


class Connection(asyncio.Protocol):
    """Serves one exchange at a time: `send`, `chunk` until the end, `release`; then `reuse` for the next one.
    `send` and `chunk` raise OSError if the connection breaks; `reuse` returns False if the server has closed it.
    `received_any` is true once a byte of the response has arrived.

    `limit` is the time, by the event loop's clock, after which a wait of the exchange raises LimitExceeded. A timer
    for each exchange would take as long as reading a response, so one timer serves all waits of a connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, opened: set[Connection]) -> None:
        self.parser = ResponseParser()
        self.received_any = False
        self.limit = math.inf
        self._loop = loop
        self._open_connections = opened
        self._chunks: list[bytes] = []
        self._unread = 0
        self._error: BaseException | None = None
        self._connected = False
        self._closed = False
        self._busy = False
        self._paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._idle_in: deque[Connection] | None = None
        """The connections among which it is idle."""
        self._deadline = math.inf
        """Deadline of the current wait for bytes, or for another exchange, by the event loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    # ------------------------------------------------------------------------------------------- for the client

    async def send(self, head: bytes, body: bytes, *, limit: float = math.inf) -> None:
        """Writes a request and waits for the head of its response. Closes the connection if that fails."""
        self._busy, self.limit = True, limit
        self._wait_until(limit)
        try:
            if len(body) <= WRITE_SIZE:
                self._transport.write(head + body)
            else:
                await self._write_pieces(head, memoryview(body))
            while not self.parser.status:
                if self._error is not None:
                    raise self._take_error()
                await self._data_available()
            if self.parser.headers.get("content-encoding", "identity") != "identity":
                raise ProtocolError("a compressed answer, which was not requested")
        except BaseException:
            self.abort()
            raise

    async def _write_pieces(self, head: bytes, body: memoryview) -> None:
        self._transport.write(head)
        for at in range(0, len(body), WRITE_SIZE):
            if self.parser.status or self._closed:  # the server refused before it read the body
                self.parser.reusable = False
                break
            self._transport.write(body[at : at + WRITE_SIZE])
            await self._write_buffer_drained()
            if self._loop.time() >= self.limit:
                raise LimitExceeded

    async def chunk(self, within: float | None = None) -> bytes:
        """Returns the bytes that arrived since the last call; empty at the end. Raises TimeoutError if none arrive
        `within` seconds."""
        if not self._chunks:
            self._wait_until(self.limit if within is None else min(self.limit, self._loop.time() + within))
        while not self._chunks:
            if self.parser.complete:
                return b""
            if self._error is not None:
                raise self._take_error()
            await self._data_available()
        self._deadline = math.inf
        chunks = self._chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._unread = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def reuse(self) -> bool:
        """Prepares an idle connection for another exchange. False if the server has closed it."""
        self._idle_in, self._deadline = None, math.inf
        self.parser, self.received_any = ResponseParser(), False
        return not self._closed

    def release(self, idle: deque[Connection]) -> None:
        """Adds it to `idle` if the response was read to its end, else closes it."""
        if self._closed or not self.parser.complete or not self.parser.reusable or len(idle) >= MAX_IDLE_CONNECTIONS:
            self.abort()
        elif self._busy:
            self._busy = False
            self._chunks.clear()
            idle.append(self)
            self._idle_in = idle
            self._wait_until(self._loop.time() + IDLE_TIMEOUT)

    def abort(self) -> None:
        """Closes at once, which the server notices."""
        self._busy = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._idle_in is not None:
            self._idle_in.remove(self)
            self._idle_in = None
        if not self._closed:
            self._closed = True
            if self._connected:
                self._transport.abort()

    def _take_error(self) -> BaseException:
        """Returns the error that broke the connection and forgets it: its traceback will refer to both this connection
        and the request."""
        assert self._error is not None
        error, self._error = self._error, ConnectionResetError("the connection is broken")
        return error

    def _wait_until(self, deadline: float) -> None:
        """Limit the current wait."""
        self._deadline = deadline
        if self._timer is not None and deadline < self._timer_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and deadline < math.inf:
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._deadline == math.inf:
            return
        if self._loop.time() < self._deadline:  # another wait has begun since the timer was set
            self._set_timer()
        elif self._idle_in is not None:
            self.abort()
        elif self._reader is not None and not self._reader.done():
            self._reader.set_exception(self._expired())
        else:
            self.resume_writing()  # `send` then notices the limit

    def _expired(self) -> Exception:
        return LimitExceeded() if self._deadline >= self.limit else TimeoutError()

    async def _data_available(self) -> None:
        if self._timer is None and self._deadline < math.inf:  # it fired just after bytes that complete nothing
            if self._loop.time() >= self._deadline:
                raise self._expired()
            self._set_timer()
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def _write_buffer_drained(self) -> None:
        if self._writer is not None:
            await self._writer
        else:
            await asyncio.sleep(0)  # yields to other tasks

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ------------------------------------------------------------------------------------------- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._connected = True
        if self._closed:
            self._transport.abort()
        else:
            self._open_connections.add(self)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.abort()  # bytes without a request
            return
        self.received_any = True
        try:
            chunk = self.parser.feed(data)
        except ProtocolError as error:
            self._error = error
            self.abort()
            self._wake()
            return
        if chunk:
            self._chunks.append(chunk)
            self._unread += len(chunk)
            if self._unread > MAX_UNREAD_BYTES and not self._paused and not self.parser.complete:
                self._paused = True
                self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._open_connections.discard(self)
        if self._error is None and not self.parser.complete:
            try:
                self.parser.end()
            except ProtocolError as incomplete:
                self._error = error if isinstance(error, OSError) else incomplete
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        self._writer = None
