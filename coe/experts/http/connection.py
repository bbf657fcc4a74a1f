"""One HTTP/1.1 connection to an expert's server, and the exchange that is under way on it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from coe.experts.http.parser import ProtocolError, ResponseParser

KEPT = 256
"""Idle connections kept to one server."""
KEEP_ALIVE = 30.0
"""Seconds an idle connection is kept."""
WINDOW = 2**18
"""Bytes of an answer that wait for their reader before the server is told to pause."""
PORTION = 2**18
"""Bytes of a request that are written at a time, so that a large one does not hold up the others."""


class Connection(asyncio.Protocol):
    """Serves one exchange at a time: `ask`, `chunk` to the end, `release`; then `take` for the next one. Each of them
    raises OSError when the connection breaks. `heard` says whether a byte of the answer has come."""

    def __init__(self, loop: asyncio.AbstractEventLoop, opened: set[Connection]) -> None:
        self.answer = ResponseParser()
        self.heard = False
        self._loop = loop
        self._opened = opened
        self._chunks: list[bytes] = []
        self._waiting = 0
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
        """Whether it is open and kept for a next exchange."""
        return self._expiry is not None and not self._busy and not self._closed

    async def ask(self, head: bytes, body: bytes) -> None:
        """Write a request and wait for the head of its answer."""
        self._busy = True
        if len(body) <= PORTION:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            whole = memoryview(body)
            for at in range(0, len(body), PORTION):
                if self.answer.status or self._closed:  # refused before it was read
                    self.answer.reusable = False
                    break
                self._transport.write(whole[at : at + PORTION])
                await self._written()
        while not self.answer.status:
            if self._error is not None:
                raise self._taken_error()
            await self._news()
        if self.answer.headers.get("content-encoding", "identity") != "identity":
            raise ProtocolError("a compressed answer, which was not asked for")

    async def chunk(self) -> bytes:
        """What has come since the last one; empty at the end."""
        while not self._chunks:
            if self.answer.complete:
                return b""
            if self._error is not None:
                raise self._taken_error()
            await self._news()
        chunks = self._chunks
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._waiting = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    def take(self) -> bool:
        """From idle to a new exchange; False where the server has closed it meanwhile."""
        if self._expiry is not None:
            self._expiry.cancel()
        self.answer, self.heard = ResponseParser(), False
        return not self._closed

    def release(self, idle: deque[Connection]) -> None:
        """Among the `idle` ones if the answer has come to its end, else close."""
        if self._closed or not self.answer.complete or not self.answer.reusable or len(idle) >= KEPT:
            self.abort()
        elif self._busy:
            self._busy = False
            self._chunks.clear()
            idle.append(self)
            self._expiry = self._loop.call_later(KEEP_ALIVE, self._expire, idle)

    def abort(self) -> None:
        """Close at once; the server sees it, whatever it is doing."""
        self._busy = False
        if not self._closed:
            self._closed = True
            if self._connected:
                self._transport.abort()

    def _expire(self, idle: deque[Connection]) -> None:
        idle.remove(self)
        self.abort()

    def _taken_error(self) -> BaseException:
        """What broke the connection. It is not kept here: its traceback will hold this connection and the request."""
        assert self._error is not None
        error, self._error = self._error, ConnectionResetError("the connection is broken")
        return error

    async def _news(self) -> None:
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def _written(self) -> None:
        if self._writer is not None:
            await self._writer
        else:
            await asyncio.sleep(0)  # the others' turn

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ------------------------------------------------------------------------------------------- for the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._connected = True
        self._opened.add(self)
        if self._closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.abort()  # nobody asked
            return
        self.heard = True
        try:
            chunk = self.answer.feed(data)
        except ProtocolError as error:
            self._error = error
            self.abort()
            self._wake()
            return
        if chunk:
            self._chunks.append(chunk)
            self._waiting += len(chunk)
            if self._waiting > WINDOW and not self._paused and not self.answer.complete:
                self._paused = True
                self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._opened.discard(self)
        if self._error is None and not self.answer.complete:
            try:
                self.answer.end()
            except ProtocolError as broken:
                self._error = error if isinstance(error, OSError) else broken
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)
        self._writer = None
