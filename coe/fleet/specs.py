"""Data types of the fleet: the server process to run for local experts, its port and its timeouts.

`coe.fleet.engines` makes a `ServerSpec` from the experts that share a server. `coe.fleet` runs it
on one machine, on shared devices or on a Ray cluster. `free_port` selects the server's port.

The administrative API of a running server: sleep and wake.

These endpoints are for the process that started the server, on loopback; no route of the gateway leads to them.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from coe.core import Api
from coe.errors import FleetError
from coe.supervision import next_pause

if TYPE_CHECKING:
    import aiohttp


class EngineClient:
    """Controls the running server at `root`. Every method is bounded in time and raises FleetError.

    `wake` follows a `sleep` that did not fail. This base class is the client of a server that can only be stopped.
    """

    def __init__(self, root: str, session: aiohttp.ClientSession) -> None:
        self._root, self._session = root.rstrip("/"), session

    async def sleep(self, *, level: int) -> None:
        """Lets requests in flight end, then frees the device. Level 1 keeps the weights in RAM, level 2 drops them."""
        raise FleetError(f"{self._root} cannot sleep at level {level}")

    async def wake(self, *, level: int) -> None:
        """Undoes a `sleep` of that level."""
        raise FleetError(f"{self._root} cannot wake from level {level}")

    async def _post(self, path: str, body: Any = None, *, time_limit: float) -> None:
        await self._request("POST", path, body, time_limit=time_limit)

    async def _get(self, path: str, *, time_limit: float) -> Any:
        """The JSON of a page."""
        text = await self._request("GET", path, None, time_limit=time_limit)
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise FleetError(f"{self._root}{path} answered {text[:100]!r}, which is not JSON") from None

    async def _request(self, method: str, path: str, body: Any, *, time_limit: float) -> bytes:
        import aiohttp  # not for the gateway, which starts no server

        url, limit = f"{self._root}{path}", aiohttp.ClientTimeout(total=time_limit)
        try:
            async with self._session.request(method, url, json=body, timeout=limit) as response:
                status, text = response.status, await response.content.read(2**16)
        except TimeoutError:
            raise FleetError(f"{url} gave no answer within {time_limit:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise FleetError(f"{url} cannot be reached: {error}") from None
        if status < 400:
            return text
        raise FleetError(f"{url} answered {status}: {_message(text)}")


ClientFactory = Callable[[str, "aiohttp.ClientSession"], EngineClient]
"""Makes the client of the server at a URL such as http://127.0.0.1:20001."""


def _message(text: bytes) -> str:
    """The message inside an error body."""
    try:
        found = orjson.loads(text)
        error = found["error"] if "error" in found else found["detail"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return text[:300].decode(errors="replace")


HOST = "127.0.0.1"
# Below the ephemeral range: a port from inside it may be taken by any outgoing connection while a server restarts,
# and a client that keeps dialling it can even connect to itself.
_FIRST, _LAST = 20_000, 32_000


def free_port(*, avoid: Container[int] = (), host: str = HOST) -> int:
    """Returns a port of `host` that is free and not in `avoid`. Raises FleetError if it finds none."""
    for _ in range(200):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if port not in avoid and is_free(port, host=host):
            return port
    raise FleetError(f"no free port between {_FIRST} and {_LAST} on {host}; stop some of the servers listening there")


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
class ServerSpec:
    """One server process to run.

    `key` names it in messages and files. `argv` runs with `env` added to the environment. `model` is the name that
    requests must use, None for a server without a model that reports its readiness itself (the gateway). `apis` are
    those that its experts use; the probe requests one of them. `log` receives its output. `ready_timeout` is in
    seconds, from start to first answer. `host` is its address. `open_client` makes the client that controls it.
    `health_path` is the page that an idle event loop answers at once.
    """

    key: str
    argv: tuple[str, ...]
    port: int
    env: Mapping[str, str] = field(repr=False)
    model: str | None
    log: Path
    ready_timeout: float
    host: str = HOST
    apis: frozenset[Api] = frozenset(("chat",))
    open_client: ClientFactory = EngineClient
    health_path: str = "/health"

    @property
    def root(self) -> str:
        """Base URL of the server."""
        return root_of(self.host, self.port)


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
