"""Chooses free ports for local servers."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Container

from coe.errors import FleetError

HOST = "127.0.0.1"
# Below the ephemeral range: a port from inside it may be taken by any outgoing connection while a server restarts,
# and a client that keeps dialling it can even connect to itself.
_FIRST, _LAST = 20_000, 32_000


def free_port(*, avoid: Container[int] = (), host: str = HOST) -> int:
    """Returns a port of `host` that nobody listens on and that is not in `avoid`. Raises FleetError if it finds
    none."""
    for _ in range(200):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if port not in avoid and is_free(port, host=host):
            return port
    raise FleetError(f"no free port between {_FIRST} and {_LAST} on {host}; stop some of the servers listening there")


def is_free(port: int, *, host: str = HOST) -> bool:
    """Whether a server could listen on the port now; lingering closed connections do not count."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True
