"""Limits the connections of a process to its file descriptors, and ends connections that make no progress.

`gateway.main` uses both. The kernel resets connections of clients that stopped reading (TCP_USER_TIMEOUT), because only
the kernel knows that no data leaves.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from coe.errors import ConfigError
from coe.supervision import TaskFailed, ignore_failure, supervised

MAX_DESCRIPTORS = 65_536
"""The soft limit is raised to at most this, also where the hard limit is infinite."""
MIN_DESCRIPTORS = 128
"""The gateway does not start with fewer."""
RESERVED_DESCRIPTORS = 64
"""Descriptors for everything except clients and experts: log, artifacts, Redis, documents, jobs."""
MAX_CLIENTS = 16_384
"""Client connections of one worker process; further ones wait to be accepted."""
CLIENT_SHARE = 0.4
"""Part of the other descriptors for client connections. A request needs one of these and one to its expert, or two if
it is hedged; health checks and idle connections need the rest."""
REMEDY = "raise it: `ulimit -n 65536`, or LimitNOFILE=65536 in systemd"

_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of open connections of one process: to `clients` and to `experts`."""

    clients: int
    experts: int

    @classmethod
    def within(cls, limit: int) -> ConnectionLimits:
        """The limits that fit into a number of descriptors."""
        free = max(limit - RESERVED_DESCRIPTORS, 0)
        clients = min(int(free * CLIENT_SHARE), MAX_CLIENTS)
        return cls(clients, free - clients)


def soft_limit() -> int:
    """The limit in force for this process, MAX_DESCRIPTORS if it is infinite."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> int:
    """Raises the soft limit to the hard one, at most to MAX_DESCRIPTORS, and returns it. Raises ConfigError if it is
    below MIN_DESCRIPTORS."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # macOS refuses more than its own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = soft_limit()
    if limit < MIN_DESCRIPTORS:
        raise ConfigError(f"the limit of open files is {limit}, and the gateway needs {MIN_DESCRIPTORS}; {REMEDY}")
    return limit


def warn_if_few(limit: int, *, concurrent_requests: int) -> None:
    """Logs a warning if the limit allows fewer client connections than requests are declared to be served at once."""
    clients = ConnectionLimits.within(limit).clients
    if clients < concurrent_requests:
        _log.warning(
            "the limit of open files is %d, so one worker serves at most %d client connections, fewer than "
            "limits.concurrent_requests (%d); others wait to be accepted; %s",
            limit,
            clients,
            concurrent_requests,
            REMEDY,
        )


_MAX_CHECKS, _CHECK_SECONDS = 5000, 0.002
"""The server opens its listener after the application has started. Connections accepted before the check keep their
settings."""


@asynccontextmanager
async def resetting_stalled_clients(*, after: float, task_failed: TaskFailed = ignore_failure) -> AsyncIterator[None]:
    """Configures the listeners once the server has opened them. `after` is in seconds."""
    task = supervised(partial(_configure_listeners, after), "stalls", task_failed=task_failed, may_return=True)
    try:
        yield
    finally:
        task.cancel()


async def _configure_listeners(after: float) -> None:
    """Connections that this process accepts from then on are reset when data has waited for `after` seconds without
    progress; the request then ends as if the client had disconnected. Linux only; elsewhere nothing happens."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    for _ in range(_MAX_CHECKS):
        if _limit_listeners(after):
            return
        await asyncio.sleep(_CHECK_SECONDS)


def _limit_listeners(after: float) -> bool:
    """Set the timeout of all listeners. Returns whether there is any."""
    return sum(_set_user_timeout(int(entry.name), after) for entry in Path("/proc/self/fd").iterdir()) > 0


def _set_user_timeout(descriptor: int, after: float) -> bool:
    """Set the timeout if the descriptor is a listener, whose accepted connections inherit it. Returns whether it is.

    The descriptor is not duplicated: closing a copy of a file's descriptor would release all locks that this process
    holds on the file, such as those of SQLite.
    """
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:  # not a socket, or closed since
        return False
    try:
        if found.family == socket.AF_UNIX or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(after * 1000))
        return True
    finally:
        found.detach()
