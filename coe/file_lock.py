"""A lock file that one process of a machine holds at a time, and that names its holder."""

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
    """This process as others see it in a lock that it holds."""
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


@contextmanager
def file_lock(path: Path, *, held: Callable[[str], CoEError]) -> Iterator[None]:
    """Hold the lock until the block ends; the kernel releases it when the process dies.

    Raises `held` of the holder's name, empty if it has just begun, where another process holds the lock.
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
