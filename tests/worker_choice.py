"""Requests to a worker of one's choice: workers share a listening socket, and any of them may accept a connection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def only(worker: psutil.Process) -> Iterator[None]:
    """The other workers of the gateway are stopped in this block, so this one accepts all connections."""
    others = [one for one in worker.parent().children() if one != worker]
    try:
        for one in others:
            one.suspend()
        for one in others:
            while one.status() != psutil.STATUS_STOPPED:
                time.sleep(0.001)
        yield
    finally:
        for one in others:
            with suppress(psutil.NoSuchProcess):
                one.resume()
