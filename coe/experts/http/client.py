"""An HTTP/1.1 client for experts' servers: one request, and its answer as it comes.

It does what the hot path needs and no more, for a fifth of the time of a general client: connections are kept and used
again, heads are prepared once, nothing is buffered without bound, TLS is the standard library's. No redirects, cookies,
proxies or compression.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self
from urllib.parse import quote, unquote, urlsplit

from coe.experts.descriptors import NoDescriptor, out_of_descriptors
from coe.experts.http.connection import Connection

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection, TLS included."""
MAX_CONNECTIONS = 65_536
"""Connections of one client at a time, unless it is given a bound."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Unreachable(ConnectionError):
    """No connection: refused, not resolved, not in time, or not trusted."""


class Target:
    """An address with the head of its requests prepared. Raises ValueError for what is no http or https address."""

    def __init__(self, url: str, headers: Mapping[str, str], *, method: str = "POST") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{parts.scheme}://{parts.hostname} is no http or https address")
        self.secure = parts.scheme == "https"
        self.host = parts.hostname
        self.port = parts.port or (443 if self.secure else 80)
        self.idle: deque[Connection] = deque()
        """Connections that are free, the one used last at the end."""
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
    """The connections of one process, at most `connections` at a time; at the bound an idle one makes room. Close it in
    the loop that used it."""

    def __init__(self, *, connections: int = MAX_CONNECTIONS) -> None:
        self._most = connections
        self._opening = 0
        self._open: set[Connection] = set()
        self.trust: ssl.SSLContext | None = None
        """Which certificates are believed; the system's, unless set."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.sleep(0)  # in which the transports close their sockets

    async def ask(self, target: Target, body: bytes = b"", headers: Mapping[str, str] = NO_HEADERS) -> Response:
        """The answer, its head read. Raises Unreachable, NoDescriptor, or another OSError when the connection breaks.

        A kept connection that ends before the first byte of an answer was ended by the server meanwhile, so the request
        goes out once more on a new one.
        """
        head = target.head(len(body), headers)
        if (connection := _idle(target)) is not None:
            try:
                return await self._ask(connection, target, head, body)
            except ConnectionError:
                if connection.heard:
                    raise
        return await self._ask(await self._connect(target), target, head, body)

    async def _ask(self, connection: Connection, target: Target, head: bytes, body: bytes) -> Response:
        try:
            await connection.ask(head, body)
        except BaseException:
            connection.abort()
            raise
        return Response(connection, target)

    async def _connect(self, target: Target) -> Connection:
        if target.secure and self.trust is None:
            self.trust = ssl.create_default_context()
        if len(self._open) + self._opening >= self._most:
            await self._make_room()
        loop = asyncio.get_running_loop()
        connection = Connection(loop, self._open)
        self._opening += 1
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.create_connection(
                    lambda: connection, target.host, target.port, ssl=self.trust if target.secure else None
                )
        except BaseException as error:
            connection.abort()
            if isinstance(error, (OSError, UnicodeError)):  # TimeoutError and SSLError are OSErrors
                if out_of_descriptors(error):
                    raise NoDescriptor(str(error)) from error
                raise Unreachable(str(error) or type(error).__name__) from error
            raise
        finally:
            self._opening -= 1
        return connection

    async def _make_room(self) -> None:
        """Close an idle connection. Raises NoDescriptor where all are in use."""
        idle = next((connection for connection in self._open if connection.idle), None)
        if idle is None:
            raise NoDescriptor(f"all {self._most} connections that fit into the limit of open files are in use")
        idle.abort()
        await asyncio.sleep(0)  # in which its transport closes the socket


def _idle(target: Target) -> Connection | None:
    while target.idle:
        connection = target.idle.pop()
        if connection.take():
            return connection
    return None


class Response:
    """An answer whose head is there: read `chunk` by piece to the end, then `release`, or `close` in between."""

    __slots__ = ("_connection", "_target", "headers", "status")

    def __init__(self, connection: Connection, target: Target) -> None:
        self._connection = connection
        self._target = target
        self.status = connection.answer.status
        self.headers: Mapping[str, str] = connection.answer.headers

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the server said it beforehand."""
        told = self.headers.get("content-length", "")
        return int(told) if told.isdigit() else None

    @property
    def at_end(self) -> bool:
        """Whether nothing is left to wait for."""
        return self._connection.answer.complete

    async def chunk(self) -> bytes:
        """What has come since the last one, at least one byte; empty at the end. Raises OSError when it breaks off."""
        return await self._connection.chunk()

    def release(self) -> None:
        """The connection may serve the next request, if the answer was read to its end; else it is closed."""
        self._connection.release(self._target.idle)

    def close(self) -> None:
        """Break the connection off, which tells a server in mid-answer to stop."""
        self._connection.abort()
