"""Detects that this process has no file descriptor left, and logs the shortage with the remedy."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator

LOG_INTERVAL = 60.0
"""Seconds between two log lines about a shortage."""
MAX_CAUSES = 16
"""Errors inspected in one chain of causes."""
_SHORTAGE = (errno.EMFILE, errno.ENFILE)
_log = logging.getLogger(__name__)


class NoDescriptor(OSError):
    """This process may not open another connection."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and the errors that caused it, at most MAX_CAUSES."""
    following: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if following is None:
            return
        yield following
        following = following.__cause__ or following.__context__


def out_of_descriptors(error: BaseException) -> bool:
    """True if an error, or one of its causes, is that this process or the system has no file descriptor left. Where an
    error of the system has no number, this tries to open one."""
    return any(
        isinstance(cause, NoDescriptor)
        or (isinstance(cause, OSError) and ((_unclear(cause) and not _can_open()) or cause.errno in _SHORTAGE))
        for cause in causes(error)
    )


def _unclear(error: OSError) -> bool:
    return isinstance(error, socket.gaierror) or error.errno is None


def _can_open() -> bool:
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno not in _SHORTAGE
    return True


class ShortageLog:
    """Logs the shortage at most once every LOG_INTERVAL seconds."""

    def __init__(self) -> None:
        self._next = float("-inf")

    def report(self) -> None:
        """Logs the shortage unless it was just logged."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + LOG_INTERVAL
            _log.error(
                "no file descriptor is left for a connection to an expert; requests are answered with 503. Raise the "
                "limit (`ulimit -n`, LimitNOFILE in systemd), or lower limits.concurrent_requests"
            )


shortage_log = ShortageLog()
"""The log of this process."""
