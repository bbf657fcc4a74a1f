"""One connection of the HTTP client to an expert's server: exchanges, parsing, buffers, time limits and reuse.

llhttp (httptools) parses the responses. This module bounds what llhttp does not, and refuses some framing that it
accepts.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import cast

from httptools import HttpParserError, HttpResponseParser

MAX_UNREAD_BYTES = 2**17
"""Bytes of a response that wait for their reader before reading from the socket is paused."""
MAX_HEAD_BYTES = 2**16
"""Bytes of heads, lines of chunks and trailers that are read in succession without a byte of the body."""
IDLE_TIMEOUT = 30.0
"""Seconds after which an idle connection is closed."""


class ProtocolError(ConnectionError):
    """The server's bytes are not a valid HTTP/1.1 response."""


class Connection(asyncio.Protocol):
    """Serves one exchange at a time: `send`, `chunk` until the end, `release`; then `reuse` for the next one.
    `send` and `chunk` raise OSError if the connection breaks; `reuse` returns False if the server has closed it.

    `limit` is the time, by the event loop's clock, after which a wait of the exchange raises TimeoutError. A timer for
    each exchange would take as long as reading a response, so one timer serves all waits of a connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, opened: set[Connection]) -> None:
        self._loop = loop
        self._open_connections = opened
        self._connected = self._closed = self._busy = self._paused = False
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._idle_in: deque[Connection] | None = None
        """The connections among which it is idle."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.reuse()

    # ------------------------------------------------------------------------------------------- for the client

    def reuse(self) -> bool:
        """Prepares for another exchange. False if the server has closed the connection."""
        self.status = 0
        """0 until the head is parsed."""
        self.headers: dict[str, str] = {}
        """Names are in lower case; the values of a repeated name are joined by a comma."""
        self.complete = False
        self.reusable = False
        """True if another request may follow once the response is complete."""
        self.received_any = False
        """True once a byte of the response has arrived."""
        self.limit = math.inf
        self._deadline = math.inf
        """Deadline of the current wait for bytes, or for another exchange, by the event loop's clock."""
        self._idle_in = None
        self._chunks: list[bytes] = []
        self._unread = self._without_body = 0
        return not self._closed

    async def send(self, head: bytes, body: bytes, *, limit: float = math.inf) -> None:
        """Writes a request and waits for the head of its response. Closes the connection if that fails."""
        self._busy, self.limit = True, limit
        self._wait_until(limit)
        try:
            self._transport.writelines((head, body))
            while not self.status:
                await self._data_available()
            self.reusable &= not self._transport.get_write_buffer_size()  # it refused before it read the body
        except BaseException:
            self.abort()
            raise

    async def chunk(self, within: float | None = None) -> bytes:
        """Returns the bytes that arrived since the last call; empty at the end. Raises TimeoutError if none arrive
        `within` seconds."""
        if not self._chunks:
            self._wait_until(self.limit if within is None else min(self.limit, self._loop.time() + within))
        while not self._chunks:
            if self.complete:
                return b""
            await self._data_available()
        self._deadline = math.inf
        chunks, self._chunks, self._unread = self._chunks, [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def release(self, idle: deque[Connection]) -> None:
        """Adds it to `idle` if the response was read to its end, else closes it."""
        if self._closed or not self.complete or not self.reusable:
            self.abort()
        elif self._busy:
            self._busy = False
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
            self._reader.set_exception(TimeoutError())

    async def _data_available(self) -> None:
        """Waits for data, the end of the wait's time, or the end of the connection. Raises what broke it."""
        if self._error is not None:  # its traceback will refer to both this connection and the request
            error, self._error = self._error, ConnectionResetError("the connection is broken")
            try:
                raise error
            finally:
                del error  # its traceback refers to this frame: a cycle
        if self._timer is None and self._deadline < math.inf:  # it fired just after bytes that complete nothing
            if self._loop.time() >= self._deadline:
                raise TimeoutError
            self._set_timer()
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    # ------------------------------------------------------------------------------------------- for the parser

    def on_message_begin(self) -> None:
        if self.complete:
            raise ProtocolError("bytes after the end of the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # later ones are trailers
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
            self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        status, headers = self._parser.get_status_code(), self.headers
        if self._parser.get_http_version() not in ("1.1", "1.0") or status < 100 or status == 101:
            raise ProtocolError("something that is not an HTTP/1.1 answer")
        if status < 200:
            self.headers = {}
            return
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise ProtocolError("a transfer coding other than chunked")
        if headers.get("content-encoding", "identity") != "identity":
            raise ProtocolError("a compressed answer, which was not requested")
        self.status, self.reusable = status, self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._unread += len(body)

    def on_message_complete(self) -> None:
        self.complete = self.status > 0

    # ------------------------------------------------------------------------------------------- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._connected = True
        self._parser = HttpResponseParser(self)
        if self._closed:
            self._transport.abort()
        else:
            self._open_connections.add(self)

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.abort()  # bytes without a request
            return
        self.received_any, unread = True, self._unread
        try:
            self._parser.feed_data(data)
            self._without_body = 0 if self._unread > unread else self._without_body + len(data)
            if self._without_body > MAX_HEAD_BYTES:
                raise ProtocolError("a head that is too long")
        except (HttpParserError, ProtocolError) as error:
            own = error.__context__ or error  # what a callback raised
            self._error = own if isinstance(own, ProtocolError) else ProtocolError(str(error))
            self.abort()
        if self._unread > MAX_UNREAD_BYTES and not (self._paused or self.complete or self._closed):
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._open_connections.discard(self)
        del self._parser  # it refers to this connection
        whole = self.status and self.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
        if whole and self._error is None and error is None:
            self.complete = True
        elif self._error is None and not self.complete:
            lost = ProtocolError("the connection ended in the middle of the answer")
            self._error = error if isinstance(error, OSError) else lost
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
