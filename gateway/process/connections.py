"""Limits the connections of a process to its file descriptors."""

from __future__ import annotations

import logging
import resource
from contextlib import suppress
from dataclasses import dataclass

from coe.errors import ConfigError

MAX_DESCRIPTORS = 65_536
"""The soft limit is raised to at most this number, even if the hard limit is infinite."""
MIN_DESCRIPTORS = 128
"""The gateway does not start with fewer."""
RESERVED_DESCRIPTORS = 64
"""Descriptors for everything except clients and experts: log, artifacts, Redis, documents, jobs."""
MAX_CLIENTS = 16_384
"""Client connections of one worker process; further ones wait to be accepted."""
CLIENT_SHARE = 0.4
"""Share of the remaining descriptors for client connections. A request needs one of these and one to its expert. Health
checks and idle connections need the rest."""
REMEDY = "raise it: `ulimit -n 65536`, or LimitNOFILE=65536 in systemd"

_log = logging.getLogger("gateway")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of the open connections of one process, with `clients` and with `experts`."""

    clients: int
    experts: int

    @classmethod
    def within(cls, limit: int) -> ConnectionLimits:
        """Return the limits that fit into `limit` descriptors."""
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
    """Logs a warning if the limit allows fewer client connections than `limits.concurrent_requests` declares."""
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
