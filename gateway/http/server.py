"""`HttpServer`: accepts the connections of one worker process, at most as many as it has room for, and closes them.

Several processes may share the listening socket. Each accepts one connection per turn of its event loop, so a busy one
leaves new connections to the others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from email.utils import formatdate
from typing import Self

from starlette.types import ASGIApp

from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.http.connection import Connection

ACCEPT_PAUSE_SECONDS = 0.05
"""Pause after a failed accept: without a free file descriptor the next one would fail as well."""
BACKLOG = 2048
"""Connections that wait to be accepted."""
_log = logging.getLogger("gateway.http")


def open_listener(host: str, port: int, *, stalled_after: float) -> socket.socket:
    """Open the socket that the workers accept connections from. Raises OSError.

    The kernel resets a connection whose client has not read any data for `stalled_after` seconds (Linux only), because
    only the kernel knows that no data leaves.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit the options
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stalled_after * 1000))
    listener.setblocking(False)
    return listener


class HttpServer:
    """Serves an ASGI application. Use it as a context: its end waits until every response is sent."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        max_connections: int,
        task_failed: TaskFailed = ignore_failure,
    ) -> None:
        self.app = app
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self.tasks: set[asyncio.Task[None]] = set()
        """The tasks of the running requests."""
        self.closing = False
        """True once no new connections are accepted."""
        self.date = b""
        """The date header, which changes every second."""
        self._listener = listener
        self._max_connections = max_connections
        self._task_failed = task_failed
        self._connections: set[Connection] = set()
        self._changed = asyncio.Event()
        """Set whenever a connection closes."""

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        self._set_date()
        self._accepting = supervised(self._accept, "accept", task_failed=self._task_failed)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closing = True
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        for connection in tuple(self._connections):
            connection.shutdown()
        while self._connections:
            self._changed.clear()
            await self._changed.wait()
        if self.tasks:
            await asyncio.wait(self.tasks)
        self._date_timer.cancel()

    def connection_closed(self, connection: Connection) -> None:
        """Note the end of a connection."""
        self._connections.discard(connection)
        self._changed.set()

    async def _accept(self) -> None:
        while True:
            while len(self._connections) >= self._max_connections:
                self._changed.clear()
                await self._changed.wait()
            try:
                client, address = await self.loop.sock_accept(self._listener)
            except OSError as error:  # the client has left, or no file descriptor is free
                _log.debug("a connection was not accepted: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
                continue
            await self._open(Connection(self, address[:2]), client)

    async def _open(self, connection: Connection, client: socket.socket) -> None:
        self._connections.add(connection)
        try:
            await self.loop.connect_accepted_socket(lambda: connection, client)
        except BaseException as error:
            self._connections.discard(connection)
            client.close()
            if not isinstance(error, OSError):  # the client has left
                raise

    def _set_date(self) -> None:
        now = time.time()
        self.date = b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
        self._date_timer = self.loop.call_later(1 - now % 1, self._set_date)
