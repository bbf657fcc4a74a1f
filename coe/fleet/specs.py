"""Data types of the fleet: the server process to run for local experts, its port and its timeouts.

`coe.fleet.planning` makes a `ServerSpec` from the experts that share a server. `coe.fleet` runs it
on one machine, on shared devices or on a Ray cluster. `free_port` selects the server's port.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coe.core import Api
from coe.errors import FleetError
from coe.fleet.engines.admin import ClientFactory, EngineClient
from coe.supervision import next_pause

HOST = "127.0.0.1"
# Below the ephemeral range: a port from inside it may be taken by any outgoing connection while a server restarts,
# and a client that keeps dialling it can even connect to itself.
_FIRST, _LAST = 20_000, 32_000
_MAX_RESERVED = 64
_reserved: deque[int] = deque()
"""Descriptors of the sockets that reserve the latest ports of this process, oldest first."""


def free_port(*, avoid: Container[int] = (), host: str = HOST) -> int:
    """Returns a port of `host` that is free and not in `avoid`. Raises FleetError if it finds none.

    On Linux, the port stays reserved until this process ends or has chosen 64 more: no other call of this function
    returns it. A server may listen only minutes after its port was chosen, and stops listening during a restart.
    """
    for _ in range(200):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if port not in avoid and is_free(port, host=host) and _reserve(port):
            return port
    raise FleetError(f"no free port between {_FIRST} and {_LAST} on {host}; stop some of the servers listening there")


def _reserve(port: int) -> bool:
    """Reserves the port for this process. Returns False if this or another process has reserved it.

    The reservation is a Unix socket with an abstract name, so it leaves no file behind. The kernel removes the name
    when the process ends. Network namespaces separate abstract names as they separate ports. Where such sockets do
    not exist (outside Linux) or are forbidden (in a sandbox), ports are chosen without a reservation.
    """
    if sys.platform != "linux":
        return True
    try:
        with socket.socket(socket.AF_UNIX) as reservation:
            reservation.bind(f"\0coe-port-{port}")
            _reserved.append(reservation.detach())
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    if len(_reserved) > _MAX_RESERVED:
        os.close(_reserved.popleft())
    return True


def is_free(port: int, *, host: str = HOST) -> bool:
    """Returns True if a server could listen on the port now; lingering closed connections do not count."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True


def root_of(host: str, port: int) -> str:
    """Base URL of a server; IPv6 addresses get their brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """The address of a server, its log file, and a folder that is searched for its command before PATH."""

    host: str
    port: int
    log: Path
    bin_folder: Path


ATTACHED = "attached\n"
"""Line in the log of a process that has loaded its model in a server which runs already."""


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """One server process to run.

    `key` names it in messages and files. `argv` runs with `env` added to the environment. `model` is the name that
    requests must use, None for a server without a model that reports its readiness itself (the gateway). `apis` are
    those that its experts use; the probe requests one of them. `log` receives its output. `ready_timeout` is in
    seconds, from start to first answer. `host` is its address. `adapters` are the LoRA folders that it serves from the
    start, by name; with `loads_adapters` it loads more while it runs. `open_client` makes the client that controls it.
    `health_path` is the page that an idle event loop answers at once. With `attached` the address is that of a server
    which runs already: the process loads a model there, writes `ATTACHED` and unloads it when it is ended.
    """

    key: str
    argv: tuple[str, ...]
    port: int
    env: Mapping[str, str] = field(repr=False)
    model: str | None
    log: Path
    ready_timeout: float
    host: str = HOST
    adapters: Mapping[str, Path] = field(default_factory=dict)
    apis: frozenset[Api] = frozenset(("chat",))
    loads_adapters: bool = False
    open_client: ClientFactory = EngineClient
    health_path: str = "/health"
    attached: bool = False

    @property
    def root(self) -> str:
        """Base URL of the server."""
        return root_of(self.host, self.port)

    @property
    def command(self) -> tuple[str, ...]:
        """The command line: `argv` and the adapters."""
        modules = tuple(f"{name}={folder}" for name, folder in self.adapters.items())
        return (*self.argv, "--lora-modules", *modules) if modules else self.argv


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts of supervised servers, in seconds.

    `check_interval` and `check_timeout` are of health checks, `grace` is the time between SIGTERM and SIGKILL. After
    `max_missed_checks` failed checks a server counts as frozen. Delays before restarts double from `first_restart` to
    `max_restart` seconds."""

    check_interval: float = 5.0
    check_timeout: float = 5.0
    max_missed_checks: int = 3
    grace: float = 5.0
    first_restart: float = 1.0
    max_restart: float = 30.0

    def restart_delay(self, previous: float, *, up: float) -> float:
        """The delay after `previous` (0: the first) for a server that was ready for `up` seconds."""
        return next_pause(previous, ran=up, first=self.first_restart, longest=self.max_restart)
