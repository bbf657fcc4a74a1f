"""An HTTP/1.1 client for expert servers: sends one request and returns its response while the body arrives.

It supports what the hot path needs, in a fifth of the time of a general client: keep-alive connections, prepared
request heads, bounded buffers, the standard library's TLS. It has no redirects, cookies, proxies or compression. A
`Target` keeps the idle connections of one URL. Each `Connection` serves one exchange at a time.

One connection of the HTTP client to an expert's server: exchanges, parsing, buffers, time limits and reuse.

llhttp (httptools) parses the responses. This module bounds what llhttp does not, and refuses some framing that it
accepts.
"""

from __future__ import annotations

import asyncio
import base64
import math
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self, cast
from urllib.parse import quote, unquote, urlsplit

from httptools import HttpParserError, HttpResponseParser

MAX_UNREAD_BYTES = 2**17
"""Bytes of a response that wait for their reader before reading from the socket is paused."""
MAX_HEAD_BYTES = 2**16
"""Bytes of heads, lines of chunks and trailers that are read in succession without a byte of the body."""
SMALL_BODY = 2**14
"""Bytes of a body that is copied to its head, since one buffer is written in less time than two."""
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
            if len(body) <= SMALL_BODY:
                self._transport.write(head + body)
            else:
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


CONNECT_TIMEOUT = 5.0
"""Seconds to connect, TLS included."""
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
        return b"%b%bcontent-length: %d\r\n\r\n" % (self._head, _lines(headers) if headers else b"", length)


def _lines(headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers):
        raise ValueError("a header holds a line break")
    return lines.encode("latin-1")


class Client:
    """The connections of one process. Close the client in the event loop that used it. Without `reuses`, a connection
    serves one request, which is sent once."""

    def __init__(self, *, reuses: bool = True) -> None:
        self._reuses = reuses
        self._open: set[Connection] = set()
        self.ssl_context: ssl.SSLContext | None = None
        """Verifies certificates; the system's trust store unless set."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.sleep(0)  # in which the transports close their sockets

    async def send(
        self,
        target: Target,
        body: bytes = b"",
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        limit: float = math.inf,
        on_write: Callable[[], None] = lambda: None,
    ) -> Response:
        """Sends a request and returns the response once its head is read. Raises Unreachable, or another OSError when
        the connection breaks. Calls `on_write` before it writes to a connection.

        After `limit`, by the event loop's clock, each wait for the server raises TimeoutError, also that for a chunk,
        until `Response.lift_limit` is called.

        If a reused connection ends before the first byte of a response, the server closed it while it was idle; the
        request is sent once more over a new connection.
        """
        head = target.head(len(body), headers)
        idle: Connection | None = None
        while target.idle and not (idle := target.idle.pop()).reuse():
            idle = None
        connection = idle or await self._connect(target, limit)
        on_write()
        try:
            await connection.send(head, body, limit=limit)
        except ConnectionError:
            if idle is None or idle.received_any:
                raise
            connection = await self._connect(target, limit)
            on_write()
            await connection.send(head, body, limit=limit)
        connection.reusable &= self._reuses
        return Response(connection, target)

    async def get(self, url: str, headers: Mapping[str, str] = NO_HEADERS, *, max_bytes: int) -> tuple[int, bytes]:
        """Returns the status and the body of a page, truncated once it exceeds `max_bytes`. Raises ValueError for an
        invalid URL, or OSError."""
        response = await self.send(Target(url, headers, method="GET"))
        try:
            return response.status, await response.read(max_bytes)
        finally:
            response.close()

    async def _connect(self, target: Target, limit: float) -> Connection:
        if target.secure and self.ssl_context is None:
            self.ssl_context = ssl.create_default_context()
        loop = asyncio.get_running_loop()
        connection = Connection(loop, self._open)
        deadline = min(loop.time() + CONNECT_TIMEOUT, limit)
        try:
            async with asyncio.timeout_at(deadline):
                tls = self.ssl_context if target.secure else None
                await loop.create_connection(lambda: connection, target.host, target.port, ssl=tls)
        except BaseException as error:
            connection.abort()
            self._open.discard(connection)  # uvloop closes the socket without a call of `connection_lost`
            if isinstance(error, TimeoutError) and deadline == limit:
                raise
            if isinstance(error, (OSError, UnicodeError)):  # TimeoutError and SSLError are OSErrors
                error.__traceback__ = None  # a future of the event loop keeps the error, and its frames the request
                raise Unreachable(str(error) or type(error).__name__) from error
            raise
        return connection


class Response:
    """A response whose head is read. Call `chunk` until it returns nothing, then `release`; or `close` before that."""

    __slots__ = ("_connection", "_target", "headers", "status")

    def __init__(self, connection: Connection, target: Target) -> None:
        self._connection = connection
        self._target = target
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def complete(self) -> bool:
        """True if the whole body has arrived."""
        return self._connection.complete

    async def read(self, max_bytes: int, *, report: Callable[[int], None] | None = None) -> bytes:
        """Returns the body, or its start with more than `max_bytes` bytes if it is longer. `report` is called with the
        bytes so far. Raises OSError, and what `report` raises."""
        first = await self.chunk()
        if self.complete:  # as most bodies are, with their head
            return first
        chunks, size = [first], len(first)
        while size <= max_bytes and (chunk := await self.chunk()):
            chunks.append(chunk)
            size += len(chunk)
            if report is not None:
                report(size)
        return b"".join(chunks)

    async def chunk(self, within: float | None = None) -> bytes:
        """Returns the bytes that arrived since the last call, at least one; empty at the end. Raises OSError if it
        breaks off, and TimeoutError if nothing arrives for `within` seconds."""
        return await self._connection.chunk(within)

    def lift_limit(self) -> None:
        """Ends the time limit of the exchange."""
        self._connection.limit = math.inf

    def release(self) -> None:
        """Keeps the connection for another request if the body was read to its end; else closes it."""
        self._connection.release(self._target.idle)

    def close(self) -> None:
        """Closes the connection, so that a server that is still generating stops."""
        self._connection.abort()
