"""`HttpServer`: accepts client connections in one worker process up to a limit, and closes them when it stops.

Several processes may share the listening socket. A process with clearly more connections than another waits up to 5 ms
before it accepts one. Otherwise it accepts all that wait, up to a limit: accepting one takes several iterations of the
event loop, each of which takes tens of milliseconds under load.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from typing import Any, Protocol, Self

from starlette.types import ASGIApp

from coe.supervision import TaskFailed, ignore_failure, supervised
from gateway.cohort import Cohort
from gateway.http.connection import Connection, SharedState
from gateway.process.connections import REMEDY

ACCEPT_PAUSE_SECONDS = 0.05
"""Pause after a failed accept. Without a free file descriptor an immediate retry would fail too."""
CLOSING_SECONDS = 5.0
"""Time that clients have, when the server stops, to read their responses and to send the rest of a head or body."""
DEFER_SECONDS, MAX_DEFERRALS = 0.001, 5
"""Length and largest number of the pauses before an accept in which a process with fewer connections can accept."""
MAX_ACCEPTS = 64
"""Most connections that are accepted together; half of the free places is another limit, since a connection that has
just ended holds file descriptors for another moment."""
BACKLOG = 2048
"""Connections that the kernel queues until they are accepted."""
Accepted = tuple[socket.socket, Any]
"""A client's socket and its address."""
_log = logging.getLogger("gateway.http")


def open_listener(host: str, port: int, *, stalled_after: float) -> socket.socket:
    """Open the socket from which the workers accept connections. Raises OSError.

    On Linux the kernel closes a connection whose client has not accepted any data for `stalled_after` seconds
    (TCP_USER_TIMEOUT). The process itself cannot see whether buffered data was received.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit the options
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(stalled_after * 1000))
    listener.setblocking(False)
    return listener


def _close_failed(client: socket.socket, opening: asyncio.Task[Any]) -> None:
    """Close the socket of a connection that could not be opened, usually because the client has left."""
    error = None if opening.cancelled() else opening.exception()
    if error is not None:
        if not isinstance(error, OSError):
            _log.error("a client's connection could not be opened", exc_info=error)
        with suppress(OSError):  # the event loop may have closed it
            client.close()


class Peers(Protocol):
    """The view of one process on all processes that share the listener."""

    def report(self, connections: int) -> None:
        """Report to the others how many connections this process has."""

    def leave(self) -> None:
        """Report to the others that this process accepts no more connections."""

    @property
    def has_more(self) -> bool:
        """True if this process has clearly more connections than another."""


class HttpServer:
    """Serves an ASGI application while its context is entered.

    Its exit waits for the running requests, and at most CLOSING_SECONDS more for clients to read the responses.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        max_connections: int,
        peers: Peers | None = None,
        task_failed: TaskFailed = ignore_failure,
        cohort: Cohort | None = None,
    ) -> None:
        self._app = app
        self._listener = listener
        self._max_connections = max_connections
        self._peers = peers
        self._task_failed = task_failed
        self._cohort = cohort or Cohort()
        self._opening: set[asyncio.Task[Any]] = set()
        """The tasks that create connections of accepted sockets."""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.state = SharedState(self._app, self._listener.getsockname()[:2], loop, self._cohort)
        if self._peers is not None:
            self.state.on_change = self._peers.report
            self._peers.report(0)
        self._set_date()
        self._accepting = supervised(self._accept, "accept", task_failed=self._task_failed)
        return self

    async def __aexit__(self, *_: object) -> None:
        state = self.state
        state.closing = True
        if self._peers is not None:
            state.on_change = lambda _: None
            self._peers.leave()
            self._peers = None
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        waiting: list[Accepted] = []
        self._accept_waiting(waiting, self._free_places)  # their clients may have sent a request already
        self._listener.close()
        await self._open(waiting)
        for connection in tuple(state.connections):
            connection.shutdown()
        await self._wait_for_clients()
        self._date_timer.cancel()

    async def _wait_for_clients(self) -> None:
        """Wait for the running requests, then up to CLOSING_SECONDS for the clients to read their responses. Then close
        the remaining connections."""
        state = self.state
        until = state.loop.time() + CLOSING_SECONDS
        while state.connections or state.tasks:
            if state.tasks:
                await asyncio.wait(state.tasks)
                until = state.loop.time() + CLOSING_SECONDS
                continue
            state.changed.clear()
            try:
                async with asyncio.timeout_at(until):
                    await state.changed.wait()
            except TimeoutError:
                if not state.tasks:
                    for connection in tuple(state.connections):
                        connection.abort()

    async def _accept(self) -> None:
        state, warned = self.state, False
        while True:
            while len(state.connections) >= self._max_connections:
                state.changed.clear()
                await state.changed.wait()
            await self._defer()
            try:
                accepted = [await state.loop.sock_accept(self._listener)]
            except OSError as error:  # the client left before the accept, or no file descriptor is free
                if error.errno in (errno.EMFILE, errno.ENFILE) and not warned:
                    _log.warning("no file descriptor is left for a client's connection; %s", REMEDY)
                    warned = True
                await asyncio.sleep(ACCEPT_PAUSE_SECONDS)
            else:
                self._accept_waiting(accepted, min(MAX_ACCEPTS, self._free_places // 2))
                await self._open(accepted)

    async def _defer(self) -> None:
        """Leave the next connection to another process if this one has clearly more."""
        for _ in range(MAX_DEFERRALS):
            if self._peers is None or not self._peers.has_more:
                return
            await asyncio.sleep(DEFER_SECONDS)

    @property
    def _free_places(self) -> int:
        return self._max_connections - len(self.state.connections)

    def _accept_waiting(self, accepted: list[Accepted], limit: int) -> None:
        """Accept further connections that wait, up to `limit`, unless another process has clearly fewer."""
        connections = len(self.state.connections)
        with suppress(OSError):  # none waits, or the next accept reports the error
            while len(accepted) < limit:
                if self._peers is not None:
                    self._peers.report(connections + len(accepted))
                    if self._peers.has_more:
                        return
                client, address = self._listener.accept()
                client.setblocking(False)
                accepted.append((client, address))

    async def _open(self, accepted: list[Accepted]) -> None:
        """Create the connections of accepted sockets. They are completed even if this task is cancelled: uvloop would
        close the sockets without a call of `connection_lost`."""
        for client, address in accepted:
            protocol = partial(Connection, self.state, address[:2])
            task = self.state.loop.create_task(self.state.loop.connect_accepted_socket(protocol, client))
            task.add_done_callback(partial(_close_failed, client))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        if self._opening:
            await asyncio.wait(self._opening)
        self.state.on_change(len(self.state.connections))

    def _set_date(self) -> None:
        now = time.time()
        self.state.date = b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
        self._date_timer = self.state.loop.call_later(1 - now % 1, self._set_date)
