"""One HTTP/1.1 connection to an expert server, with the exchange that is under way on it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from coe.experts.http.parser import ProtocolError, ResponseParser

MAX_IDLE_CONNECTIONS = 256
"""Idle connections kept to one server."""
IDLE_TIMEOUT = 30.0
"""Seconds that an idle connection is kept."""
MAX_UNREAD_BYTES = 2**18
"""Bytes of a response that wait for their reader before reading from the socket is paused."""
WRITE_SIZE = 2**18
"""Bytes of a request written at a time, so that a large body does not delay other requests."""


class Connection(asyncio.Protocol):
    """Serves one exchange at a time: `send`, `chunk` until the end, `release`; then `reuse` for the next one. Each of
    them raises OSError if the connection breaks. `received_any` says whether a byte of the response has arrived."""

    def __init__(self, loop: asyncio.AbstractEventLoop, opened: set[Connection]) -> None:
        self.parser = ResponseParser()
        self.received_any = False
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
        self._expiry: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------- for the client

    @property
    def idle(self) -> bool:
        """Whether it is open and kept for another exchange."""
        return self._expiry is not None and not self._busy and not self._closed

    async def send(self, head: bytes, body: bytes) -> None:
        """Writes a request and waits for the head of its response."""
        self._busy = True
        if len(body) <= WRITE_SIZE:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            whole = memoryview(body)
            for at in range(0, len(body), WRITE_SIZE):
                if self.parser.status or self._closed:  # the server refused before it read the body
                    self.parser.reusable = False
                    break
                self._transport.write(whole[at : at + WRITE_SIZE])
                await self._write_buffer_drained()
        while not self.parser.status:
            if self._error is not None:
                raise self._take_error()
            await self._data_available()
        if self.parser.headers.get("content-encoding", "identity") != "identity":
            raise ProtocolError("a compressed answer, which was not requested")

    async def chunk(self) -> bytes:
        """Returns the bytes that arrived since the last call; empty at the end."""
        while not self._chunks:
            if self.parser.complete:
                return b""
            if self._error is not None:
                raise self._take_error()
            await self._data_available()
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
        if self._expiry is not None:
            self._expiry.cancel()
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
            self._expiry = self._loop.call_later(IDLE_TIMEOUT, self._expire, idle)

    def abort(self) -> None:
        """Closes at once, which the server notices."""
        self._busy = False
        if not self._closed:
            self._closed = True
            if self._connected:
                self._transport.abort()

    def _expire(self, idle: deque[Connection]) -> None:
        idle.remove(self)
        self.abort()

    def _take_error(self) -> BaseException:
        """Returns what broke the connection and forgets it: its traceback will refer to this connection and the
        request."""
        assert self._error is not None
        error, self._error = self._error, ConnectionResetError("the connection is broken")
        return error

    async def _data_available(self) -> None:
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def _write_buffer_drained(self) -> None:
        if self._writer is not None:
            await self._writer
        else:
            await asyncio.sleep(0)  # lets other tasks run

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ------------------------------------------------------------------------------------------- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._connected = True
        self._open_connections.add(self)
        if self._closed:
            self._transport.abort()

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
