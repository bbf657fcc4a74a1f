"""One client connection: an asyncio protocol that parses HTTP/1.1 with llhttp (httptools) and runs the application.

`Connection` receives bytes and reads requests from them. `Exchange` is one request with its response: the `receive` and
`send` of ASGI. Requests that a client pipelines wait for their turn. What an unauthenticated client can make a
connection hold is bounded: bytes of a head, bytes of a body that nobody reads yet, pipelined requests, and time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.types import ASGIApp, Message, Scope

from gateway.errors import error_body

if TYPE_CHECKING:
    from gateway.http.server import HttpServer

IDLE_SECONDS = 75.0
"""Time limit for a request's head, and for a connection to wait for its next request. Longer than that of load
balancers (60), so that none sends a request into a closing connection."""
CLOSING_HEAD_SECONDS = 5.0
"""Time limit for a head that is arriving when the server stops."""
DISCARD_SECONDS = 30.0
"""Time in which the rest of a request is discarded after its response, so that the client can read the response."""
MAX_HEAD_BYTES = 2**16
"""Bytes of a head, of the trailers, or between two parts of a chunked body. One read may exceed it."""
MAX_UNREAD_BYTES = 2**16
"""Bytes of a body that wait for the application; the connection is not read meanwhile. One read may exceed it."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for the response before theirs; the connection closes after the last one."""
CHUNKED, CONTENT_LENGTH, UNTIL_CLOSE, NO_BODY = range(4)
"""How the end of a response's body is marked."""

_STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}\r\n".encode()
    for status in range(100, 600)
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger("gateway.http")


class Connection(asyncio.Protocol):
    """Reads requests from one connection, in order, and runs the application for each."""

    __slots__ = (
        "_client", "_current", "_deadline", "_headers", "_in_head", "_is_last", "_is_reading", "_loop", "_parser",
        "_reading", "_server", "_timer", "_transport", "_unparsed", "_upgrades", "_url", "_waiting", "_writable",
    )  # fmt: skip

    def __init__(self, server: HttpServer, client: tuple[str, int]) -> None:
        self._server = server
        self._client = client
        self._loop = server.loop
        self._parser = HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._deadline: float | None = None
        """Time at which the connection closes, None while a response is due."""
        self._timer: asyncio.TimerHandle
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head = True
        self._upgrades = False
        """True from the head of a request that offers another protocol to its body."""
        self._unparsed = 0
        """Bytes received since a head ended or a part of a body arrived."""
        self._current: Exchange | None = None
        """The request whose response is sent."""
        self._reading: Exchange | None = None
        """The request whose body arrives."""
        self._waiting: deque[Exchange] = deque()
        self._is_last = False
        """True if no further request of this connection is read."""
        self._is_reading = True
        self._writable: asyncio.Future[None] | None = None
        """Set while the buffer of the transport is full."""

    # ------------------------------------------------------------------------------------- transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._deadline = self._loop.time() + IDLE_SECONDS
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def data_received(self, data: bytes) -> None:
        if self._is_last and self._reading is None:
            return  # the connection closes after the responses that are due
        self._unparsed += len(data)
        try:
            try:
                self._parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                self._read_without_upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            if self._reading is not None or not self._is_last:
                message = f"this is not a valid HTTP/1.1 request: {error.__context__ or error}"
                self._refuse(400, message, code="invalid_http")
            return
        if self._unparsed > MAX_HEAD_BYTES:
            message = f"the request has more than {MAX_HEAD_BYTES // 1024} KiB of headers"
            self._refuse(431, message, code="headers_too_large")

    def _read_without_upgrade(self, rest: bytes) -> None:
        """Read on after the head of a request that offers another protocol. The offer is declined by an ordinary
        response, as Java's client expects it, but llhttp treats the body as data of that protocol."""
        framing = [header for header in self._headers if header[0] in (b"content-length", b"transfer-encoding")]
        head = b"".join(b"%b: %b\r\n" % header for header in framing or [(b"content-length", b"0")])
        self._parser = HttpRequestParser(self)
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n%b" % (head, rest))

    def connection_lost(self, _: Exception | None) -> None:
        self._timer.cancel()
        self._resume_writer()
        for exchange in (self._current, self._reading, *self._waiting):
            if exchange is not None:
                exchange.disconnect()
        self._current = self._reading = None
        self._waiting.clear()
        del self._parser  # it refers to this connection: a cycle
        self._server.connection_closed(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        self._resume_writer()

    def _resume_writer(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def _close_at(self, deadline: float) -> None:
        """Close the connection then. `_deadline` alone is enough for a time that the timer does not miss."""
        self._timer.cancel()
        self._deadline = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        if self._deadline is not None and self._deadline <= self._loop.time():
            self._transport.close()
        else:
            due = self._deadline or self._loop.time() + IDLE_SECONDS
            self._timer = self._loop.call_at(due, self._on_timer)

    # ---------------------------------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        if not self._upgrades:
            self._url, self._headers, self._in_head = b"", [], True

    def on_url(self, part: bytes) -> None:
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are ignored: a proxy has not checked them as headers
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._upgrades:  # the head that `_read_without_upgrade` has written
            self._upgrades = False
            return
        self._in_head, self._unparsed = False, 0
        self._upgrades = self._parser.should_upgrade()
        if self._is_last:
            return
        version = self._parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise ValueError(f"version {version}")
        path, query = _split_url(self._url)
        scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": path.encode("ascii"),
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "client": self._client,
            "server": self._server.address,
        }
        exchange = self._reading = Exchange(self, scope)
        if self._server.closing or version == "1.0" or not self._parser.should_keep_alive():
            self._end_after(exchange)
        if self._current is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            if len(self._waiting) >= MAX_PIPELINED:
                self._end_after(exchange)
            self.update_reading()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        if self._reading is not None:
            self._reading.add_body(body)
            self.update_reading()

    def on_message_complete(self) -> None:
        if self._upgrades:
            return  # its body follows
        self._unparsed = 0
        exchange, self._reading = self._reading, None
        if exchange is None:
            return
        exchange.end_body()
        if exchange.complete and self._current is None:  # its response was complete before its body
            self._next(exchange)

    # ------------------------------------------------------------------------------------- exchanges

    def _start(self, exchange: Exchange) -> None:
        self._current, self._deadline = exchange, None
        task = self._loop.create_task(exchange.run(self._server.app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def response_complete(self, exchange: Exchange) -> None:
        """Continue with the next request, or close the connection. The rest of an unread body is discarded first."""
        self._current = None
        if exchange is self._reading:
            self._close_at(self._loop.time() + DISCARD_SECONDS)
            self.update_reading()
        else:
            self._next(exchange)

    def _next(self, exchange: Exchange) -> None:
        if self._waiting:
            self._start(self._waiting.popleft())
            self.update_reading()
        elif not exchange.keep_alive or self._is_last or self._server.closing:
            self._transport.close()
        else:
            self._deadline = self._loop.time() + IDLE_SECONDS

    def _last_exchange(self) -> Exchange | None:
        """The newest request whose response is not complete, or whose body is not."""
        return self._waiting[-1] if self._waiting else self._current or self._reading

    def _end_after(self, exchange: Exchange | None) -> None:
        """Read no request after this one, and close the connection after its response."""
        self._is_last = True
        if exchange is not None:
            exchange.keep_alive = False

    def update_reading(self) -> None:
        """Stop reading while a body waits for the application or a request for its turn, and go on afterwards."""
        reading = not self._waiting and (self._reading is None or self._reading.unread <= MAX_UNREAD_BYTES)
        if reading != self._is_reading and not self._transport.is_closing():
            self._is_reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _refuse(self, status: int, message: str, *, code: str) -> None:
        """Refuse what arrives, and close the connection, after the responses that are due."""
        broken, self._reading = self._reading, None
        self._end_after(self._last_exchange())
        if broken is not None:
            broken.disconnect()  # its body cannot become complete
            if broken in self._waiting:
                self._waiting.remove(broken)
        if self._current is not None and self._current is not broken:
            return
        if broken is not None and broken.begun:
            self._transport.close()
            return
        body = error_body(message, kind="invalid_request_error", code=code)
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(_STATUS_LINES[status] + self._server.date + head + body)
        self._transport.write_eof()  # closed while bytes arrive, the connection is reset, and the response may be lost
        self._close_at(self._loop.time() + DISCARD_SECONDS)

    def shutdown(self) -> None:
        """Close the connection once its requests have their responses. A head that is arriving is still read."""
        if (last := self._last_exchange()) is not None:
            last.keep_alive = False
        elif self._unparsed:
            self._close_at(self._loop.time() + CLOSING_HEAD_SECONDS)
        else:
            self._transport.close()

    # --------------------------------------------------------------------------------------- writing

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def writable(self) -> None:
        """Wait until the transport's buffer has room, or the client has left."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    @property
    def write_paused(self) -> bool:
        return self._writable is not None

    @property
    def date(self) -> bytes:
        """The date header of a response."""
        return self._server.date

    def abort_response(self) -> None:
        """Close the connection in the middle of a response, after what is written, so that the client notices."""
        self._transport.close()


class Exchange:
    """One request and its response. `receive` and `send` are those of ASGI."""

    __slots__ = (
        "_body", "_connection", "_disconnected", "_end_delivered", "_ended", "_expects_continue", "_framing", "_head",
        "_left", "_waiter", "complete", "keep_alive", "scope", "unread",
    )  # fmt: skip

    def __init__(self, connection: Connection, scope: Scope) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = True
        self.complete = False
        """True once the response is sent."""
        self.unread = 0
        """Bytes of the body that the application has not received."""
        self._body: list[bytes] = []
        self._ended = False
        self._end_delivered = False
        self._disconnected = False
        self._waiter: asyncio.Future[None] | None = None
        self._expects_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"]
        )
        self._head: bytes | None = None
        """The head of the response until its first part of a body, b"" afterwards; None before the response."""
        self._framing = CHUNKED
        self._left = 0
        """Bytes that are missing to the declared length of the response."""

    async def run(self, app: ASGIApp) -> None:
        """Run the application. A response that it does not begin is a 500; one that it does not end closes the
        connection, so that the client notices."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            if not self.complete:  # Starlette raises an error again that it has logged and answered
                _log.exception("the application failed")
        if self.complete or self._disconnected:
            return
        if not self.begun:
            self._head = None
            await self.send({"type": "http.response.start", "status": 500, "headers": [(b"content-length", b"0")]})
            await self.send({"type": "http.response.body"})
        else:
            self._connection.abort_response()

    @property
    def begun(self) -> bool:
        """True once a part of the response is sent."""
        return self._head == b""

    # --------------------------------------------------------------------------------------- request

    def add_body(self, body: bytes) -> None:
        """Add a part of the body. It is discarded once the response is complete."""
        if not self.complete:
            self._body.append(body)
            self.unread += len(body)
            self._wake()

    def end_body(self) -> None:
        self._ended = True
        self._wake()

    def disconnect(self) -> None:
        """End `receive`: the client has left."""
        self._disconnected = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """Return what has arrived of the body; after its end, wait until the client leaves or the response is sent."""
        if self._expects_continue and self._head is None:
            self._expects_continue = False
            self._connection.write(_CONTINUE)
        while not (self._disconnected or self.complete):
            if self.unread or (self._ended and not self._end_delivered):
                body = b"".join(self._body)
                self._body, self.unread, self._end_delivered = [], 0, self._ended
                if not self._ended:
                    self._connection.update_reading()
                return {"type": "http.request", "body": body, "more_body": not self._ended}
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return {"type": "http.disconnect"}

    # -------------------------------------------------------------------------------------- response

    async def send(self, message: Message) -> None:
        """Send the head or a part of the body. Waits while the client does not read."""
        if self._connection.write_paused:
            await self._connection.writable()
        if self._disconnected:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._send_body(message.get("body", b""), more=message.get("more_body", False))

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self._head is not None:
            raise RuntimeError("the response has begun already")
        lines = [_STATUS_LINES[status], self._connection.date]
        has_length = closes = False
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                has_length, self._left = True, int(value)
            elif name == b"connection" and value.lower() == b"close":
                closes, self.keep_alive = True, False
        self._framing = self._framing_of(status, has_length=has_length)
        if self._framing == CHUNKED:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not (self.keep_alive or closes):
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
            raise RuntimeError("a response header holds a line break or NUL")
        self._head = head
        if not has_length:  # a stream: its first part may be long in coming
            self._flush()

    def _framing_of(self, status: int, *, has_length: bool) -> int:
        if self.scope["method"] == "HEAD" or status in (204, 304):
            return NO_BODY
        if has_length:
            return CONTENT_LENGTH
        if self.scope["http_version"] == "1.0":
            self.keep_alive = False
            return UNTIL_CLOSE
        return CHUNKED

    def _flush(self) -> None:
        if self._head:
            self._connection.write(self._head)
            self._head = b""

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._head is None or self.complete:
            raise RuntimeError("a response body without a head or after its end")
        data = self._framed(body, more=more)
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._connection.write(data)
        if not more:
            if self._left and self._framing == CONTENT_LENGTH:
                raise RuntimeError("the response is shorter than its content-length")
            self.complete = True
            self._body, self.unread = [], 0
            self._wake()
            self._connection.response_complete(self)

    def _framed(self, body: bytes, *, more: bool) -> bytes:
        if self._framing == CHUNKED:
            end = b"" if more else b"0\r\n\r\n"
            return b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end
        if self._framing == NO_BODY:
            return b""
        if self._framing == CONTENT_LENGTH:
            self._left -= len(body)
            if self._left < 0:
                raise RuntimeError("the response is longer than its content-length")
        return body


_ASGI = {"version": "3.0", "spec_version": "2.3"}


def _split_url(url: bytes) -> tuple[str, bytes]:
    """Return the path, as it was sent, and the query of a request's target. Raises ValueError."""
    if not url.startswith(b"/") and url != b"*":
        parsed = parse_url(url)  # http://host/path, which proxies send
        return (parsed.path or b"/").decode("ascii"), parsed.query or b""
    path, _, query = url.partition(b"?")
    return path.decode("ascii"), query
