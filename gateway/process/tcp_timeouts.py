"""Clients that stopped reading are let go by the kernel, which alone knows that nothing goes out any more."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from coe.supervision import TaskFailed, ignore_failure, supervised

_LOOKS, _PAUSE = 5000, 0.002
"""The server opens its listener when the application has started; what it accepts before we look stays as it is."""


@asynccontextmanager
async def letting_go(*, after: float, task_failed: TaskFailed = ignore_failure) -> AsyncIterator[None]:
    """Meanwhile set it up, once the server listens. `after` in seconds."""
    task = supervised(partial(_let_go, after), "stalls", task_failed=task_failed, may_return=True)
    try:
        yield
    finally:
        task.cancel()


async def _let_go(after: float) -> None:
    """Connections that this process accepts from now on are reset when data waits for their client and none of it got
    out for so long; the request then ends as if the client had left. Linux only, elsewhere nothing is done."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    for _ in range(_LOOKS):
        if _limit_listeners(after):
            return
        await asyncio.sleep(_PAUSE)


def _limit_listeners(after: float) -> bool:
    """Whether there is any."""
    return sum(_limit(int(entry.name), after) for entry in Path("/proc/self/fd").iterdir()) > 0


def _limit(descriptor: int, after: float) -> bool:
    """Set it where the descriptor is of a listener, from which what is accepted inherits it. Whether it is."""
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
