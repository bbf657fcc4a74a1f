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
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from coe.experts.http.connection import Connection

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
        return b"%b%bcontent-length: %d\r\n\r\n" % (self._head, _lines(headers), length)


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
