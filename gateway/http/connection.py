"""One client connection: an asyncio protocol that parses HTTP/1.1 with llhttp (httptools) and runs the application.

`Connection` parses the bytes that arrive into requests. `Exchange` is one request with its response: the `receive` and
`send` of ASGI. Pipelined requests are served one after the other. Bounds limit what a client can make a connection
hold: the bytes of a head, the bytes of a body that the application has not received, pipelined requests, and time.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.types import ASGIApp

from coe.errors import HeadersTooLarge, InvalidHttp, RequestError
from gateway.cohort import Cohort
from gateway.errors import body_of, status_of
from gateway.http.exchange import STATUS_LINES, Exchange

IDLE_SECONDS = 75.0
"""Time limit for a connection to wait for its next request, and then for the head of this request. It exceeds
the idle timeout of nginx and AWS (60 s), so that they send no request on a connection that is closing. Envoy's default
is an hour: set it below 75 s."""
CLOSING_HEAD_SECONDS = 4.0
"""Time limit for a head that is arriving when the server stops."""
CLOSING_IDLE_SECONDS = 1.0
"""Time limit for the next request of an idle connection when the server stops. A proxy may have just sent one and would
not repeat it."""
DISCARD_SECONDS = 30.0
"""Time in which bytes that arrive after a response are read and discarded. If a socket is closed with unread bytes, the
kernel resets the connection, and the client can lose the response."""
MAX_HEAD_BYTES = 2**16
"""Limit of a head, of the trailers, and of the framing between two parts of a chunked body. The last read may exceed
it."""
MAX_UNREAD_BYTES = 2**16
"""Bytes of a body that may wait for the application. Above it the connection is not read. The last read may exceed
it."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for earlier responses. At this number no more are read, and the connection
closes after the last response."""
LAST_READ_SECONDS = 0.01
"""Time after the deadline of a connection in which the event loop reads once more."""
_FRAMING = (b"content-length", b"transfer-encoding")
_WITHOUT_BODY = (b"content-length", b"0")
_ASGI = {"version": "3.0", "spec_version": "2.3"}


@dataclass(slots=True)
class SharedState:
    """State that all connections of a process share."""

    app: ASGIApp
    address: tuple[str, int]
    """Address of the listener."""
    loop: asyncio.AbstractEventLoop
    cohort: Cohort
    """Counts the requests that are ready to run."""
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """The tasks of the running requests."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a connection closes."""
    date: bytes = b""
    """The `date` header line, which is updated every second."""
    closing: bool = False
    """True once the server stops and accepts no new connections."""
    on_change: Callable[[int], None] = lambda _: None
    """Called with the number of connections when it changes."""

    def add(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.on_change(len(self.connections))

    def remove(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.on_change(len(self.connections))
        self.changed.set()


class Connection(asyncio.Protocol):
    """Reads requests from one connection, in order, and runs the application for each."""

    __slots__ = (
        "_client", "_current", "_deadline", "_headers", "_in_head", "_is_last", "_is_reading", "_loop",
        "_parser", "_reading", "_shared", "_timer", "_transport", "_unparsed", "_upgrades", "_url", "_waiting",
        "_writable",
    )  # fmt: skip

    def __init__(self, shared: SharedState, client: tuple[str, int]) -> None:
        self._shared = shared
        self._client = client
        self._loop = shared.loop
        self._parser: HttpRequestParser
        self._transport: asyncio.Transport
        self._deadline: float | None = None
        """Time of the event loop at which the connection closes; None while a response is due."""
        self._timer: asyncio.TimerHandle
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head = True
        self._upgrades = False
        """True from the end of a head that offers another protocol until the new parser has read the head that replaces
        it."""
        self._unparsed = 0
        """Bytes received since the last head, part of a body, or request ended."""
        self._current: Exchange | None = None
        """The request whose response is due; None between requests."""
        self._reading: Exchange | None = None
        """The request whose body is arriving."""
        self._waiting: list[Exchange] = []
        """Pipelined requests whose turn has not come, the oldest first."""
        self._is_last = False
        """True once no further request of this connection is read."""
        self._is_reading = True
        self._writable: asyncio.Future[None] | None = None
        """Set while the buffer of the transport is full."""

    # ------------------------------------------------------------------------------------- transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._parser = HttpRequestParser(self)
        self._shared.add(self)
        self._deadline = self._loop.time() + IDLE_SECONDS
        self._timer = self._loop.call_at(self._deadline, self._on_timer)

    def data_received(self, data: bytes) -> None:
        if self._is_last and self._reading is None:
            return  # the connection closes after the responses that are due
        self._unparsed += len(data)
        try:
            self._parse(data)
        except HttpParserError as error:
            if self._reading is not None or not self._is_last:
                self._refuse(InvalidHttp(f"this is not a valid HTTP/1.1 request: {error.__context__ or error}"))
            return
        if self._unparsed > MAX_HEAD_BYTES:
            self._refuse(HeadersTooLarge(f"the headers are longer than {MAX_HEAD_BYTES // 1024} KiB together"))

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Raises HttpParserError.

        A request may offer another protocol (`upgrade`), as those of Java's client do. An ordinary response declines
        the offer, but llhttp stops parsing after such a head. So a new parser gets a head that declares the same length
        of the body, and then the body.
        """
        while True:
            try:
                self._parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                if self._is_last and self._reading is None:
                    return
                framing = [header for header in self._headers if header[0] in _FRAMING] or [_WITHOUT_BODY]
                head = b"".join(b"%b: %b\r\n" % header for header in framing)
                data = b"POST / HTTP/1.1\r\n%b\r\n%b" % (head, data[upgrade.args[0] :])
                self._parser = HttpRequestParser(self)
            else:
                return

    def connection_lost(self, _: Exception | None) -> None:
        self._timer.cancel()
        self._resume_writer()
        for exchange in (self._current, self._reading, *self._waiting):
            if exchange is not None:
                exchange.disconnect()
        self._current = self._reading = None
        self._waiting.clear()
        del self._parser  # it refers to this connection: a cycle
        self._shared.remove(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        self._resume_writer()

    def _resume_writer(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def _close_at(self, deadline: float) -> None:
        """Close the connection at `deadline`, with a new timer.

        A deadline IDLE_SECONDS from now needs no new timer: the pending timer fires before it and is set again.
        """
        self._timer.cancel()
        self._deadline = deadline
        self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self, was_due: bool = False) -> None:
        """Close the connection if its deadline has passed. First the event loop reads once more: after a pause it runs
        timers before it reads what has arrived."""
        deadline = self._deadline or self._loop.time() + IDLE_SECONDS
        if deadline > self._loop.time():
            self._timer = self._loop.call_at(deadline, self._on_timer)
        elif was_due:
            self.close()
        else:
            self._timer = self._loop.call_later(LAST_READ_SECONDS, self._on_timer, True)

    # ---------------------------------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        if not self._upgrades:
            self._url, self._headers, self._in_head = b"", [], True
            self._unparsed = self._unparsed or 1  # it may begin in the read that ended the previous request
            if self._deadline is not None:
                self._deadline = self._loop.time() + IDLE_SECONDS

    def on_url(self, part: bytes) -> None:
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are ignored, because a proxy does not check them as headers
            name = name.lower()
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise ValueError("a transfer-encoding other than chunked")
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._upgrades:  # this is the head that `_parse` wrote
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
            "server": self._shared.address,
        }
        exchange = self._reading = Exchange(self, scope)
        if self._shared.closing or version == "1.0" or not self._parser.should_keep_alive():
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
            return  # the new parser reads the body
        self._unparsed, self._url, self._headers = 0, b"", []  # an idle connection keeps none of them
        exchange, self._reading = self._reading, None
        if exchange is None:
            return
        exchange.end_body()
        self.update_reading()
        if exchange.complete and self._current is None:  # the response was complete before the body
            self._next(exchange)

    # ------------------------------------------------------------------------------------- exchanges

    def _start(self, exchange: Exchange) -> None:
        self._current, self._deadline = exchange, None
        self._shared.cohort.ready += 1
        task = self._loop.create_task(exchange.run(self._shared.app, self._shared.cohort))
        self._shared.tasks.add(task)
        task.add_done_callback(self._shared.tasks.discard)

    def response_complete(self, exchange: Exchange) -> None:
        """Continue with the next request or close the connection. First discard the rest of a body that is arriving."""
        self._current = None
        if exchange is not self._reading:
            self._next(exchange)
        elif exchange.keep_alive:
            self._close_at(self._loop.time() + DISCARD_SECONDS)
            self.update_reading()
        else:
            self._close_after_client()

    def _next(self, exchange: Exchange) -> None:
        if not exchange.keep_alive:  # the client repeats the waiting requests after `connection: close`
            self._close_after_client()
        elif self._waiting:
            self._start(self._waiting.pop(0))
            self.update_reading()
        elif self._is_last:
            self._close_after_client()
        elif self._shared.closing:  # the response began before, and did not announce the end of the connection
            self._close_at(self._loop.time() + CLOSING_IDLE_SECONDS)
        else:
            self._deadline = self._loop.time() + IDLE_SECONDS

    def _close_after_client(self) -> None:
        """Close the sending half, and the connection once the client closes its half. Discard bytes that arrive."""
        self._is_last, self._reading = True, None
        self._waiting.clear()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self._close_at(self._loop.time() + DISCARD_SECONDS)
            self.update_reading()

    def _last_exchange(self) -> Exchange | None:
        """Return the newest request whose response or body is not complete."""
        return self._waiting[-1] if self._waiting else self._current or self._reading

    def _end_after(self, exchange: Exchange | None) -> None:
        """Read no request after this one, and close the connection after its response."""
        self._is_last = True
        if exchange is not None:
            exchange.keep_alive = False

    def update_reading(self) -> None:
        """Pause reading while bytes of a body wait for the application or a request waits for its turn, else resume."""
        reading = not self._waiting and (self._reading is None or self._reading.unread <= MAX_UNREAD_BYTES)
        if reading != self._is_reading and not self._transport.is_closing():
            self._is_reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _refuse(self, error: RequestError) -> None:
        """Send an error and close the connection. If an earlier response is due, only close the connection after it."""
        broken, self._reading = self._reading, None
        if broken is not None:
            broken.disconnect()  # its body will never be complete
            if broken in self._waiting:
                self._waiting.remove(broken)
        self._end_after(self._last_exchange())
        self.update_reading()
        if self._current is not None and self._current is not broken:
            return
        if broken is not None and broken.head_sent:
            self.close()
            return
        body = body_of(error)
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(STATUS_LINES[status_of(error)] + self._shared.date + head + body)
        self._close_after_client()

    def shutdown(self) -> None:
        """Close the connection after the responses that are due. A request that is arriving, or about to, is served."""
        if (last := self._last_exchange()) is not None:
            last.keep_alive = last.keep_alive and last.begun
        elif self._is_last:
            return  # it closes once the client has read its last response
        else:
            limit = CLOSING_HEAD_SECONDS if self._unparsed else CLOSING_IDLE_SECONDS
            self._close_at(self._loop.time() + limit)

    def abort(self) -> None:
        """Close the connection at once and discard unsent bytes."""
        self._transport.abort()

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
        return self._shared.date

    def close(self) -> None:
        """Close the connection once the buffer is sent, and read no further request."""
        self._is_last = True
        self._transport.close()

    def reset(self) -> None:
        """Reset the connection (TCP RST), so that the client gets an error."""
        client = self._transport.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _split_url(url: bytes) -> tuple[str, bytes]:
    """Return the path and the query of a request target, both as sent. Raises ValueError."""
    if not url.startswith(b"/") and url != b"*":
        parsed = parse_url(url)  # the absolute form, http://host/path
        return (parsed.path or b"/").decode("ascii"), parsed.query or b""
    path, _, query = url.partition(b"?")
    return path.decode("ascii"), query
