"""Resets connections of clients that stopped reading, by the kernel's TCP_USER_TIMEOUT: only the kernel knows that no
data leaves."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from coe.supervision import TaskFailed, ignore_failure, supervised

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
    """Whether there is any listener."""
    return sum(_set_user_timeout(int(entry.name), after) for entry in Path("/proc/self/fd").iterdir()) > 0


def _set_user_timeout(descriptor: int, after: float) -> bool:
    """Sets the timeout if the descriptor is a listener, whose accepted connections inherit it. Returns whether it
    is."""
    try:
        own = os.dup(descriptor)
    except OSError:  # closed since
        return False
    try:
        found = socket.socket(fileno=own)
    except OSError:  # not a socket
        os.close(own)
        return False
    with found:
        if found.family == socket.AF_UNIX or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(after * 1000))
        return True
