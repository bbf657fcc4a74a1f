"""One request and its response: the `receive` and `send` of ASGI over a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from gateway.cohort import Cohort

CHUNKED, CONTENT_LENGTH, UNTIL_CLOSE, NO_BODY = range(4)
"""Ways to mark the end of a response's body."""
STATUS_LINES = {
    status: f"HTTP/1.1 {status} {HTTPStatus(status).phrase if status in set(HTTPStatus) else ''}\r\n".encode()
    for status in range(100, 600)
}
SINK = "coe.sink"
"""The extension of the ASGI scope that holds `Exchange.sink`."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_log = logging.getLogger("gateway.http")


class Channel(Protocol):
    """The connection of an exchange."""

    @property
    def date(self) -> bytes:
        """The date header of a response."""

    @property
    def write_paused(self) -> bool:
        """True while the write buffer is full, because the client does not read."""

    def write(self, data: bytes) -> None:
        """Send bytes; what cannot be sent yet is buffered."""

    async def writable(self) -> None:
        """Wait until the buffer has room, or the client has left."""

    def update_reading(self) -> None:
        """Pause or resume reading, by the bytes of the body that wait for the application."""

    def response_complete(self, exchange: Exchange) -> None:
        """Continue with the next request, or close the connection."""

    def close(self) -> None:
        """Close the connection once the buffer is sent, and read no further request."""

    def reset(self) -> None:
        """Reset the connection (TCP RST), so that the client gets an error."""


class Exchange:
    """Runs the application for one request."""

    __slots__ = (
        "_body", "_channel", "_disconnected", "_end_delivered", "_ended", "_expects_continue", "_framing", "_head",
        "_left", "_waiter", "complete", "keep_alive", "scope", "unread",
    )  # fmt: skip

    def __init__(self, channel: Channel, scope: Scope) -> None:
        self._channel = channel
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
        self._expects_continue = scope["http_version"] != "1.0" and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"]
        )
        self._head: bytes | None = None
        """The head of the response while it waits for the body; None before the response, b"" once it is sent."""
        self._framing = CHUNKED
        self._left = 0
        """Bytes of the declared content-length that are not sent yet."""

    async def run(self, app: ASGIApp, cohort: Cohort) -> None:
        """Run the application. If it ends before any of the response is sent, the response is a 500. If it ends in the
        middle of one, the connection closes, so that the client detects the failure. `cohort` counts the request as
        ready until its task begins, which is here."""
        cohort.ready -= 1
        self.scope["extensions"] = {SINK: self.sink}
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            if not self.complete:  # Starlette raises errors again after it has logged and answered them
                _log.exception("the application failed")
        finally:  # also after a cancellation
            self.scope.pop("extensions", None)  # breaks a reference cycle
            if not (self.complete or self._disconnected):
                self._fail()

    def _fail(self) -> None:
        if not self.head_sent:
            self._head = None
            self._begin(500, [(b"content-length", b"0")])
            self._send_body(b"", more=False)
        elif self._framing == UNTIL_CLOSE:  # after an ordinary end the response would seem complete
            self._channel.reset()
        else:
            self._channel.close()

    @property
    def begun(self) -> bool:
        """True once the response has begun: its head does not change any more."""
        return self._head is not None

    @property
    def head_sent(self) -> bool:
        """True once the head of the response is sent."""
        return self._head == b""

    # --------------------------------------------------------------------------------------- request

    def add_body(self, body: bytes) -> None:
        """Add a part of the body; after the response it is discarded."""
        if not self.complete:
            self._body.append(body)
            self.unread += len(body)
            self._wake()

    def end_body(self) -> None:
        self._ended = True
        self._wake()

    def disconnect(self) -> None:
        """Record that the client has left, so that `receive` returns."""
        self._disconnected = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None

    async def receive(self) -> Message:
        """Return the part of the body that has arrived. After its end, wait until the client leaves or the response is
        sent, and return `http.disconnect`."""
        if self._expects_continue and self._head is None and not self._disconnected:
            self._expects_continue = False
            if not self._ended:
                self._channel.write(_CONTINUE)
        while not (self._disconnected or self.complete):
            if self.unread or (self._ended and not self._end_delivered):
                body = b"".join(self._body)
                self._body, self.unread, self._end_delivered = [], 0, self._ended
                if not self._ended:
                    self._channel.update_reading()
                return {"type": "http.request", "body": body, "more_body": not self._ended}
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiter)  # several tasks may wait
        return {"type": "http.disconnect"}

    # -------------------------------------------------------------------------------------- response

    async def send(self, message: Message) -> None:
        """Send the head or a part of the body. Waits while the client does not read."""
        if self._channel.write_paused:
            await self._channel.writable()
        if self._disconnected:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self._send_body(message.get("body", b""), more=message.get("more_body", False))

    def sink(self, body: bytes) -> bool:
        """Send a further part of a streamed body without waiting. Return False if only `send` can do that."""
        if not body or self._head != b"" or self._framing != CHUNKED or self.complete or self._disconnected:
            return False
        channel = self._channel
        if channel.write_paused:
            return False
        channel.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        if self._head is not None:
            raise RuntimeError("the response has begun already")
        lines = [STATUS_LINES[status], self._channel.date]
        has_length = closes = False
        for name, value in headers:
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == b"content-length":
                has_length, self._left = True, int(value)
            elif name == b"connection" and value.lower() == b"close":
                closes, self.keep_alive = True, False
        if self._expects_continue and not self._ended:
            self.keep_alive = False  # the client may or may not send the body, so the next request's start is unknown
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
        if not has_length:  # a stream, whose first part may arrive late
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
            self._channel.write(self._head)
            self._head = b""

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._head is None or self.complete:
            raise RuntimeError("a response body without a head or after its end")
        data = self._framed(body, more=more)
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._channel.write(data)
        if not more:
            if self._left and self._framing == CONTENT_LENGTH:
                raise RuntimeError("the response is shorter than its content-length")
            self.complete = True
            self._body, self.unread = [], 0
            self._wake()
            self._channel.response_complete(self)

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
