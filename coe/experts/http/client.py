"""An HTTP/1.1 client for expert servers: sends one request and returns its response while the body arrives.

It supports what the hot path needs, in a fifth of the time of a general client: keep-alive connections, prepared
request heads, bounded buffers, the standard library's TLS. It has no redirects, cookies, proxies or compression. A
`Target` keeps the idle connections of one URL. Each `Connection` serves one exchange at a time.
"""

from __future__ import annotations

import asyncio
import base64
import math
import ssl
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self, cast
from urllib.parse import quote, unquote, urlsplit

from coe.core import Sink
from coe.experts.file_descriptors import NoDescriptor, out_of_descriptors
from coe.experts.http.parser import ProtocolError, ResponseParser

MAX_IDLE_CONNECTIONS = 256
"""Idle connections per server; further ones are closed."""
IDLE_TIMEOUT = 30.0
"""Seconds after which an idle connection is closed."""
MAX_UNREAD_BYTES = 2**18
"""Bytes of a response that wait for their reader before reading from the socket is paused."""
WRITE_SIZE = 2**18
"""Bytes of a request written at a time, so that a large body does not delay other requests."""
CONNECT_TIMEOUT = 5.0
"""Seconds to connect, TLS included."""
MAX_CONNECTIONS = 65_536
"""Default bound on the open connections of one client."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Unreachable(ConnectionError):
    """No connection: refused, not resolved, timed out, or an untrusted certificate."""


class Target:
    """A URL with the prepared head of its requests. Raises ValueError if it is not an http or https address."""

    def __init__(self, url: str, headers: Mapping[str, str], *, method: str = "POST") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{parts.scheme}://{parts.hostname} is not an http or https address")
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        self.idle: deque[Connection] = deque()
        """Idle connections, the most recently used one last."""
        path = quote(f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}", safe="/%:@!$&'()*+,;=~?")
        host = f"[{self.host}]" if ":" in self.host else self.host.encode("idna").decode("ascii")
        sent = {"host": f"{host}:{parts.port}" if parts.port else host, "accept-encoding": "identity"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            sent["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        sent |= headers
        self._head = f"{method} {path} HTTP/1.1\r\n".encode("ascii") + _lines(sent)

    def head(self, length: int, headers: Mapping[str, str]) -> bytes:
        """The head of one request whose body has `length` bytes."""
        own = _lines(headers) if headers else b""
        return b"%b%bcontent-length: %d\r\n\r\n" % (self._head, own, length)


def _lines(headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers):
        raise ValueError("a header holds a line break")
    return lines.encode("latin-1")


class Client:
    """The connections of one process, at most `connections` at a time; beyond that, an idle one is closed for a new
    one. Close the client in the event loop that used it. Without `reuses`, a connection serves one request, which is
    sent once."""

    def __init__(self, *, connections: int = MAX_CONNECTIONS, reuses: bool = True) -> None:
        self._max_connections, self._reuses = connections, reuses
        self._connecting = 0
        self._open: set[Connection] = set()
        self.ssl_context: ssl.SSLContext | None = None
        """Verifies certificates; the system's trust store unless set."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.sleep(0)  # in which the transports close their sockets

    async def send(self, target: Target, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS) -> Response:
        """Sends a request and returns the response once its head is read. Raises Unreachable, NoDescriptor, or another
        OSError when the connection breaks.

        If a reused connection ends before the first byte of a response, the server closed it while it was idle; the
        request is sent once more over a new connection.
        """
        head = target.head(len(body), headers)
        if (connection := _idle_connection(target)) is not None:
            try:
                await connection.send(head, body)
            except ConnectionError:
                if connection.received_any:
                    raise
            else:
                return self._response(connection, target)
        connection = await self._connect(target)
        await connection.send(head, body)
        return self._response(connection, target)

    async def get(self, url: str, headers: Mapping[str, str] = NO_HEADERS, *, max_bytes: int) -> tuple[int, bytes]:
        """Returns the status and the body of a page, truncated once it exceeds `max_bytes`. Raises ValueError for an
        invalid URL, or OSError."""
        response = await self.send(Target(url, headers, method="GET"))
        try:
            return response.status, await response.read(max_bytes)
        finally:
            response.close()

    def _response(self, connection: Connection, target: Target) -> Response:
        connection.parser.reusable &= self._reuses
        return Response(connection, target)

    async def _connect(self, target: Target) -> Connection:
        if target.secure and self.ssl_context is None:
            self.ssl_context = ssl.create_default_context()
        if len(self._open) + self._connecting >= self._max_connections:
            await self._make_room()
        loop = asyncio.get_running_loop()
        connection = Connection(loop, self._open)
        self._connecting += 1
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.create_connection(
                    lambda: connection, target.host, target.port, ssl=self.ssl_context if target.secure else None
                )
        except BaseException as error:
            connection.abort()
            if isinstance(error, (OSError, UnicodeError)):  # TimeoutError and SSLError are OSErrors
                error.__traceback__ = None  # a future of the event loop keeps the error, and its frames the request
                if out_of_descriptors(error):
                    raise NoDescriptor(str(error)) from error
                raise Unreachable(str(error) or type(error).__name__) from error
            raise
        finally:
            self._connecting -= 1
        return connection

    async def _make_room(self) -> None:
        """Closes an idle connection. Raises NoDescriptor if all are in use."""
        idle = next((connection for connection in self._open if connection.idle), None)
        if idle is None:
            raise NoDescriptor(
                f"all {self._max_connections} connections that fit into the limit of open files are in use"
            )
        idle.abort()
        await asyncio.sleep(0)  # in which its transport closes the socket


def _idle_connection(target: Target) -> Connection | None:
    while target.idle:
        connection = target.idle.pop()
        if connection.reuse():
            return connection
    return None


class Response:
    """A response whose head is read. Call `chunk` until it returns nothing, then `release`; or `close` before that."""

    __slots__ = ("_connection", "_target", "headers", "status")

    def __init__(self, connection: Connection, target: Target) -> None:
        self._connection = connection
        self._target = target
        self.status = connection.parser.status
        self.headers: Mapping[str, str] = connection.parser.headers

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def length(self) -> int | None:
        """Bytes of the body according to content-length, None without one."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdigit() else None

    @property
    def complete(self) -> bool:
        """True if the whole body has arrived."""
        return self._connection.parser.complete

    async def read(self, max_bytes: int) -> bytes:
        """Returns the body, or its start with more than `max_bytes` bytes if it is longer. Raises OSError."""
        first = await self.chunk()
        if self.complete:  # as most bodies are, with their head
            return first
        chunks, size = [first], len(first)
        while size <= max_bytes and (chunk := await self.chunk()):
            chunks.append(chunk)
            size += len(chunk)
        return b"".join(chunks)

    async def chunk(self, within: float | None = None, sink: Sink | None = None) -> bytes:
        """Returns the bytes that arrived since the last call, at least one; empty at the end. Bytes that `sink` takes
        while this waits are not returned. Raises OSError if it breaks off, and TimeoutError if nothing arrives for
        `within` seconds."""
        return await self._connection.chunk(within, sink)

    def release(self) -> None:
        """Keeps the connection for another request if the body was read to its end; else closes it."""
        self._connection.release(self._target.idle)

    def close(self) -> None:
        """Closes the connection, so that a server that is still generating stops."""
        self._connection.abort()


class Connection(asyncio.Protocol):
    """Serves one exchange at a time: `send`, `chunk` until the end, `release`; then `reuse` for the next one. Each of
    them raises OSError if the connection breaks. `received_any` is true once a byte of the response has arrived."""

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
        self._sink: Sink | None = None
        """The sink of the reader that waits; None without one."""
        self._within = math.inf
        """The time limit of this reader in seconds."""
        self._idle_in: deque[Connection] | None = None
        """The connections among which it is idle."""
        self._deadline = math.inf
        """Deadline of the current wait for bytes, or for another exchange, by the event loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    # ------------------------------------------------------------------------------------------- for the client

    @property
    def idle(self) -> bool:
        """True if it is open and kept for another exchange."""
        return self._idle_in is not None and not self._closed

    async def send(self, head: bytes, body: bytes) -> None:
        """Writes a request and waits for the head of its response. Closes the connection if that fails."""
        self._busy = True
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

    async def chunk(self, within: float | None = None, sink: Sink | None = None) -> bytes:
        """Returns the bytes that arrived since the last call; empty at the end. Raises TimeoutError if none arrive
        `within` seconds. Bytes that `sink` takes are not returned, and restart the time limit."""
        if within is not None and not self._chunks:
            self._set_deadline(within)
        while not self._chunks:
            if self.parser.complete:
                return b""
            if self._error is not None:
                raise self._take_error()
            self._sink, self._within = sink, math.inf if within is None else within
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
            self._set_deadline(IDLE_TIMEOUT)

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

    def _set_deadline(self, seconds: float) -> None:
        """Limit the current wait. One timer serves all waits, as setting one takes as long as reading an event."""
        self._deadline = self._loop.time() + seconds
        if self._timer is not None and self._deadline < self._timer_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
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
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = self._sink = None

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
        if chunk and not self._sent(chunk):
            self._chunks.append(chunk)
            self._unread += len(chunk)
            if self._unread > MAX_UNREAD_BYTES and not self._paused and not self.parser.complete:
                self._paused = True
                self._transport.pause_reading()
        elif chunk and not self.parser.complete:
            return
        self._wake()

    def _sent(self, chunk: bytes) -> bool:
        """Offers bytes to the sink of a reader that still waits. Returns whether it took them."""
        if self._sink is None or self._reader is None or self._reader.done() or not self._sink(chunk):
            return False
        self._deadline = self._loop.time() + self._within
        return True

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
