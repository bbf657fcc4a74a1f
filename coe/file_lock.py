"""Locks a file so that one process of a machine holds it at a time. The file names its holder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from coe.errors import CoEError


def holder_name() -> str:
    """Return the name of this process in messages about a lock that it holds."""
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def file_lock(path: Path, *, held: Callable[[str], CoEError]) -> Iterator[None]:
    """Hold the lock until the block ends; the kernel releases it when the process dies.

    If another process holds the lock, raises `held(holder)`. The holder's name is empty if that process has just begun.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise held(file.read().strip()) from None
        file.truncate(0)
        file.write(holder_name())
        file.flush()
        yield
