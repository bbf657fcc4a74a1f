"""Runs all expert servers of one service on a Ray cluster, as `coe.fleet.fleet.Fleet` does on one machine.

`ray_cluster` connects to the cluster, `ClusterFleet` runs the servers, and `running_cluster` is the entry point of
`coe up --executor ray`: it publishes the endpoints of the experts whenever they change.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from coe.errors import ClusterError, ConfigError, pip_install
from coe.fleet.fleet import RunningServers, run_together
from coe.fleet.planning import find_problems
from coe.fleet.ray.server_actor import ServedModel, ServerRequest, server_requests
from coe.fleet.ray.server_supervisor import ServerSupervisor
from coe.fleet.specs import Timeouts
from coe.registry import Registry
from coe.settings import Endpoint, Settings
from coe.supervision import supervised
from coe.terminal import print_line

PLACEMENT_TIMEOUT = 120.0
"""Seconds that a server waits for a node with free resources; an autoscaling cluster takes about a minute to grow."""


class ClusterFleet(RunningServers):
    """`async with ClusterFleet(requests, ray=ray, report=print):` runs the servers for the length of the block.

    Entering places each server on a node, spread as far as resources allow, and returns once each has answered. It
    raises FleetError with the end of the failed server's log, or with what the cluster lacks. Inside, a server that
    dies is restarted on its node, as in Fleet, and one whose node dies on another node; `changed` is called whenever
    addresses change. Leaving, a failure or a cancellation ends every server and actor. When this process is killed, the
    cluster ends them.
    """

    def __init__(
        self,
        requests: Sequence[ServerRequest],
        *,
        ray: Any,
        report: Callable[[str], None],
        timeouts: Timeouts | None = None,
        placement_timeout: float = PLACEMENT_TIMEOUT,
    ) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._supervisors = [
            ServerSupervisor(
                request,
                ray=ray,
                report=report,
                changed=lambda: self.changed(),
                timeouts=timeouts or Timeouts(),
                placement_timeout=placement_timeout,
            )
            for request in requests
        ]
        self._last: dict[str, ServedModel] = {}
        self._followers: list[asyncio.Task[Any]] = []

    async def _open(self) -> None:
        await run_together(supervisor.place() for supervisor in self._supervisors)
        await run_together(supervisor.start() for supervisor in self._supervisors)
        self._followers = [supervised(supervisor.follow, "follow-server") for supervisor in self._supervisors]

    async def _close(self) -> None:
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        await asyncio.gather(*(supervisor.stop() for supervisor in self._supervisors))

    def endpoints(self) -> dict[str, tuple[Endpoint, ...]]:
        """The endpoints of each expert's replicas that are up. If none is up, the last known endpoint: requests to it
        fail, and their breaker notices when it is up again."""
        found: dict[str, tuple[Endpoint, ...]] = {}
        for supervisor in self._supervisors:
            key, experts = supervisor.request.key, supervisor.request.experts
            replicas = (one for one in self._supervisors if one.request.key == key)
            up = [served for one in replicas if (served := one.served) is not None]
            self._last[key] = up[0] if up else self._last[key]
            for expert in experts:
                found[expert.name] = tuple(
                    Endpoint(f"{one.root}/v1", expert.name if expert.adapter else one.model)
                    for one in up or [self._last[key]]
                )
        return found


@asynccontextmanager
async def running_cluster(
    settings: Settings, registry: Registry, *, ray: Any, publish: Callable[[Mapping[str, tuple[Endpoint, ...]]], None]
) -> AsyncIterator[None]:
    """Runs all servers for the length of the block; it begins once their endpoints are published, which follow them to
    other nodes. Raises ConfigError or FleetError."""
    base_folder = settings.config.parent
    if registry.residency is not None:
        raise ConfigError("residency is for the devices of one machine; leave it out, or `--executor ray`")
    for index, key, what in find_problems(registry.experts, base_folder=base_folder):
        raise ConfigError(f"{settings.config.name}: expert {registry.experts[index].name!r}: {key}: {what}")
    requests = list(
        server_requests(
            registry.experts,
            base_folder=base_folder,
            models=settings.models,
            logs=settings.logs,
            cluster_has_gpus=bool(ray.cluster_resources().get("GPU")),
        )
    )
    if requests:
        print_line(f"starting {len(requests)} expert server{'s' if len(requests) > 1 else ''} on the cluster")
    async with ClusterFleet(requests, ray=ray, report=print_line) as fleet:
        fleet.changed = lambda: publish(fleet.endpoints())
        fleet.changed()
        yield


CONNECT_TIMEOUT = 5.0
"""Seconds for the head node to accept a connection; Ray itself tries for more than two minutes."""


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Yields the module `ray`, connected until the block ends; a temporary cluster ends with it. Raises ClusterError if
    Ray is not installed or the cluster cannot be reached."""
    try:
        import ray
    except ImportError:
        raise ClusterError(f"ray is not installed; {pip_install('ray')}, or leave out --executor ray") from None
    _check_reachable(os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"ray: no cluster ({error}); check RAY_ADDRESS, or unset it to use this machine") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray resolves addresses without a port (`auto`, `local`) itself, at once."""
    host, _, port = address.partition("://")[2 if "://" in address else 0].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"ray: nothing answers at RAY_ADDRESS={address} ({error}); is the head of the cluster running? "
            "Unset it to use this machine"
        ) from None
