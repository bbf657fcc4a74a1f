"""Serves HTTP/1.1 in one worker process: uvicorn, with the bounds and the strict framing that it lacks.

llhttp (httptools) parses. `Protocol` bounds what a client may send and hold, and refuses heads that a proxy may read
otherwise. `Cycle` is one request and its response. `Server` bounds the connections and closes them at the end.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Literal

import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from coe.errors import HeadersTooLarge, InvalidHttp, Overloaded, RequestError
from gateway.dialects import body_of, headers_of

IDLE_SECONDS = 75
"""Time limit for a connection to wait for its next request, and then for the head of this request. It exceeds
the idle timeout of nginx and AWS (60 s), so that they send no request on a connection that is closing. Envoy's default
is an hour: set it below 75 s."""
DISCARD_SECONDS = 30.0
"""Time in which bytes that arrive after a response are read and discarded. If a socket is closed with unread bytes, the
kernel resets the connection, and the client can lose the response."""
STOPPING_SECONDS, STOPPING_IDLE_SECONDS = 5.0, 1.0
"""Time limits when the server stops: for a client to send the rest of a head or to read its last response; and for the
next request of an idle connection, since a proxy may have just sent one and would not repeat it."""
FINISH_SECONDS = 40
"""Time for running requests to end when the server stops. The application aborts them before."""
MAX_HEAD_BYTES = 2**16
"""Limit of a head, of the trailers, and of the framing between two parts of a chunked body. The last read may exceed
it."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for earlier responses. At this number no more are read, and the connection
closes after the last response."""
RETRY_SECONDS = 1.0
"""Time after which a client should try again that was refused at the limit of connections."""
_USUAL = [b"content-type", b"content-length"]
_CONTROLS = bytes((*range(9), *range(10, 32), 127))
"""Bytes that no header may have."""
_FRAMING = (b"content-length", b"transfer-encoding")


class _Transport:
    """A client's transport whose `close` lets the protocol close the connection in order."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.real, self.close = transport, close
        self.has_ended = False
        """True once the sending half is closed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def is_closing(self) -> bool:
        return self.has_ended or self.real.is_closing()


class Cycle(RequestResponseCycle):
    """One request and its response. `Protocol` gives this class to the cycles that uvicorn makes."""

    until_close = False
    """True if the end of the connection ends the response: HTTP/1.0 knows no chunks."""
    _head = b""
    """Head of the response that has not been sent."""

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            if self.waiting_for_100_continue and self.more_body:
                self.keep_alive = False  # it is unknown whether the client sends the body or the next request
            if self.scope["http_version"] == "1.0" and b"content-length" not in dict(message.get("headers", ())):
                self.until_close, self.chunked_encoding = True, False
            if self._take_head(message):
                return
        elif self.until_close:
            self.expected_content_length = len(message.get("body", b""))
        elif self._head:
            head, self._head = self._head, b""
            self.expected_content_length += len(head)
            message["body"] = head + message["body"]
        await super().send(message)

    def _take_head(self, message: Any) -> bool:
        """Keep the head of a chat's whole answer, to send it in one packet with the body. Its headers begin with type
        and length and do not mention the connection. Return False for any other, which uvicorn writes or refuses."""
        headers = message["headers"]
        is_usual = message["status"] == 200 and self.scope["method"] == "POST" and self.keep_alive
        is_usual = is_usual and [name for name, _ in headers[:2]] == _USUAL
        if not is_usual or self.disconnected or self.flow.write_paused or self.response_started:
            return False
        head = b"".join([b"%b: %b\r\n" % header for header in (*self.default_headers, *headers)])
        if len(head.translate(None, _CONTROLS)) != len(head) - 2 * len(self.default_headers) - 2 * len(headers):
            return False
        self.response_started, self.waiting_for_100_continue = True, False
        self.expected_content_length, self.chunked_encoding = int(headers[1][1]), False
        self._head = b"%b%b\r\n" % (STATUS_LINE[200], head)
        return True


class Protocol(HttpToolsProtocol):
    """One client connection. uvicorn's timer of idle connections also limits heads and the time to close."""

    transport: _Transport  # type: ignore[assignment]
    cycle: Cycle

    def __init__(self, server: Server) -> None:
        super().__init__(server.config, server.server_state, {})
        self._server = server
        self.parser = HttpRequestParser(self)  # without the leniencies of uvicorn
        self._part: Literal["head", "body", ""] = ""
        """The part of a request that is arriving."""
        self._unparsed = 0
        """Bytes received since the last head, part of a body, or request ended."""
        self._upgrades = False
        """True from the end of a head that offers another protocol until the new parser has read the head that replaces
        it."""
        self._is_last = False
        """True once no further request of this connection is read."""
        self._running: RequestResponseCycle | None = None

    # ------------------------------------------------------------------------------------- transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type]
        self._restart_timer()
        count, limit = len(self.connections), self._server.max_connections
        if count > 2 * limit:  # the other descriptors are for experts
            transport.abort()
        elif count > limit:
            self._refuse(Overloaded(f"this process serves {limit} connections already", retry_after=RETRY_SECONDS))

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._due():
            cycle.disconnected = True
            cycle.message_event.set()
        self.pipeline.clear()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.transport.close = self.transport.real.close  # breaks reference cycles
        self.cycle = self._running = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._is_last and self._part != "body":
            return  # the connection closes after the responses that are due
        self._unparsed += len(data)
        try:
            self._parse(data)
        except HttpParserError as error:
            if self._part == "body" or not self._is_last:
                self._refuse(InvalidHttp(f"this is not a valid HTTP/1.1 request: {error.__context__ or error}"))
        else:
            if self._unparsed > MAX_HEAD_BYTES:
                self._refuse(HeadersTooLarge(f"the headers are longer than {MAX_HEAD_BYTES // 1024} KiB together"))

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Raises HttpParserError.

        A request may offer another protocol (`upgrade`), as those of Java's client do. An ordinary response declines
        the offer, but llhttp stops parsing after such a head. So a new parser gets a head that declares the same length
        of the body, and then the body.
        """
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            framing = [header for header in self.headers if header[0] in _FRAMING] or [(b"content-length", b"0")]
            head = b"".join(b"%b: %b\r\n" % header for header in framing)
            self.parser = HttpRequestParser(self)
            self._parse(b"POST / HTTP/1.1\r\n%b\r\n%b" % (head, data[upgrade.args[0] :]))

    # ---------------------------------------------------------------------------------------- parser

    def on_message_begin(self) -> None:
        if self._upgrades:
            return
        if self._is_last:
            raise ValueError("a request after the last one")
        super().on_message_begin()
        self._part, self._unparsed = "head", self._unparsed or 1  # 0: it began in the read that ended another request
        if not self._due():
            self._restart_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part == "head":  # trailers are ignored, because a proxy does not check them as headers
            is_chunked = value.strip().lower() == b"chunked" and self.parser.get_http_version() != "1.0"
            if name.lower() == b"transfer-encoding" and not is_chunked:
                raise ValueError("a transfer-encoding other than chunked, or in HTTP/1.0")
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._upgrades:  # this is the head that `_parse` wrote
            self._upgrades = False
            return
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise ValueError(f"version {version}")
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
        super().on_headers_complete()
        self._part, self._unparsed, self._upgrades = "body", 0, self.parser.should_upgrade()
        self.cycle.__class__ = Cycle
        if self._server.should_exit or len(self.pipeline) >= MAX_PIPELINED:
            self.cycle.keep_alive = False
        self._is_last = not self.cycle.keep_alive

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrades:
            return  # the new parser reads the body
        self._part, self._unparsed = "", 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self._restart_timer()

    # ------------------------------------------------------------------------------------- exchanges

    def _due(self) -> list[RequestResponseCycle]:
        """The requests whose response is due, in order."""
        running = [] if self._running is None or self._running.response_complete else [self._running]
        return running + [cycle for cycle, _ in reversed(self.pipeline)]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        self._unset_keepalive_if_required()
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not (self.transport.is_closing() or self._due()):
            self._restart_timer()
            if self._part != "head":  # an idle connection keeps none of them
                self.headers, self.scope, self.cycle.scope, self.cycle.body = [], {}, {}, bytearray()  # type: ignore[typeddict-item]

    def _refuse(self, error: RequestError) -> None:
        """Send an error and close the connection. If an earlier response is due, only close the connection after it."""
        broken = self.cycle if self._part == "body" else None
        due = [cycle for cycle in self._due() if cycle is not broken]
        self._is_last, self._part = True, ""
        self.flow.resume_reading()
        if broken is not None:  # its body will never be complete
            broken.disconnected = True
            broken.message_event.set()
            if self.pipeline:
                self.pipeline.popleft()
        if due:
            due[-1].keep_alive = False
        elif broken is not None and broken.response_started:
            self.transport.real.close()
        else:
            body = body_of(error)
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            headers = [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *headers_of(error))]
            self.transport.write(b"".join((STATUS_LINE[error.status], *headers, head, body)))
            self.transport.close()

    # --------------------------------------------------------------------------------------- closing

    def _restart_timer(self) -> None:
        """Limit the time of a connection without a running request."""
        self._unset_keepalive_if_required()
        is_ending = self.transport.is_closing() or self._part == "body"
        seconds = DISCARD_SECONDS if is_ending else IDLE_SECONDS
        if self._server.should_exit:
            seconds = STOPPING_SECONDS if is_ending or self._unparsed else STOPPING_IDLE_SECONDS
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection: at once if the server stops, otherwise once the buffer is sent."""
        (self.transport.abort if self._server.should_exit else self.transport.real.close)()

    def _close(self) -> None:
        """Close the sending half, and the connection once the client closes its half. Discard bytes that arrive."""
        if self.transport.is_closing():
            return
        self._is_last, self._part = True, ""
        if isinstance(self._running, Cycle) and self._running.until_close and not self._running.response_complete:
            client = self.transport.get_extra_info("socket")  # after an ordinary end the response would seem complete
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
            return
        self.transport.has_ended = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self._restart_timer()

    def shutdown(self) -> None:
        """Close the connection after the responses that are due. A request that is arriving, or about to, is served."""
        if due := self._due():
            due[-1].keep_alive = False
        else:
            self._restart_timer()


class Server(uvicorn.Server):
    """Serves an application on a listening socket (`serve([listener])`) until `stop` is called.

    Clients above `max_connections` are refused; above twice as many their connections are closed at once.
    """

    def __init__(self, app: ASGIApp, *, max_connections: int) -> None:
        config = uvicorn.Config(
            app,
            http=lambda **_: Protocol(self),  # type: ignore[arg-type]
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=FINISH_SECONDS,
        )
        super().__init__(config)
        self.max_connections = max_connections

    def stop(self) -> None:
        """Close the listener, and the connections once their responses are sent; then `serve` returns."""
        self.should_exit = True

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in sockets or ():  # its waiting clients may have sent a request already
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    await asyncio.get_running_loop().connect_accepted_socket(lambda: Protocol(self), client)
        await super().shutdown(sockets)


def open_listener(host: str, port: int, *, stalled_after: float) -> socket.socket:
    """Open the socket from which the workers accept connections. Raises OSError.

    On Linux the kernel closes a connection whose client has not accepted any data for `stalled_after` seconds
    (TCP_USER_TIMEOUT). The process itself cannot see whether buffered data was received.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.create_server(address[:2], family=family, backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit the options
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, math.ceil(stalled_after * 1000))
    listener.setblocking(False)
    return listener
