"""Runs all expert servers of one service on a Ray cluster, as `coe.fleet.server.Fleet` does on one machine.

`ray_cluster` connects to the cluster, `ClusterFleet` runs the servers, and `running_cluster` is the entry point of
`coe up --executor ray`: it publishes the endpoints of the experts whenever they change.

`ServerSupervisor` places one server on a node, starts it there, and moves it when it is lost. It drives a Ray actor of
the plain class `ServerActor`, and says what the cluster lacks when no node has enough resources. The actor's process is
the parent of the server's supervisor process (`coe/fleet/supervisor.py`), so the server ends with the actor: when `coe
up` ends, the node dies or leaves. A `ServerRequest` describes the server and its resources. It travels to the node, so
it holds no secret.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Never

from coe.errors import ClusterError, ConfigError, FleetError, pip_install
from coe.fleet import probe, supervisor
from coe.fleet.engines import ENGINES, find_problems, group_by_server, local_servers
from coe.fleet.server import RunningServers, Server, restart_on_failure, run_together
from coe.fleet.specs import ServerSpec, Timeouts
from coe.registry import ExpertSpec, Registry
from coe.registry.runtimes import RUNTIMES
from coe.settings import Endpoint, Settings
from coe.supervision import supervised
from coe.terminal import print_line

GB = 2**30


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """One server.

    `experts` share it, `key` is the first of them, `name` distinguishes it from its replicas. `resources` are amounts
    by Ray's names. All nodes have the same folders: `base_folder` is that of experts.yaml; the node writes into
    `models` and `logs`.
    """

    key: str
    name: str
    experts: tuple[ExpertSpec, ...]
    resources: Mapping[str, float]
    base_folder: Path
    models: Path
    logs: Path


def server_requests(
    experts: Sequence[ExpertSpec], *, base_folder: Path, models: Path, logs: Path, cluster_has_gpus: bool
) -> Iterator[ServerRequest]:
    """Yields one request for each replica of each server. A server has as many replicas as the expert with most."""
    for group in group_by_server(experts).values():
        declared = tuple(expert.model_copy(update={"api_key": None}) for expert in group)
        key = next((expert.name for expert in declared if not expert.adapter), declared[0].name)
        replicas = max(expert.replicas for expert in declared)
        resources = _resources(declared, cluster_has_gpus=cluster_has_gpus)
        for number in range(1, replicas + 1):
            name = f"{key}-{number}" if replicas > 1 else key
            yield ServerRequest(key, name, declared, resources, base_folder=base_folder, models=models, logs=logs)


def _resources(experts: Sequence[ExpertSpec], *, cluster_has_gpus: bool) -> dict[str, float]:
    """One CPU, and the declared GPUs or those that the model is split over; by default one GPU if the cluster has any.
    Without a GPU, the declared memory is RAM."""
    first = experts[0]
    engine = ENGINES[first.runtime]
    gpus = len(first.gpus) or engine.devices(engine.flags(first))
    if not RUNTIMES[first.runtime].gpus or (not first.gpus and gpus == 1 and not cluster_has_gpus):
        gpus = 0
    memory = 0 if gpus else int(GB * max(expert.memory_gb or 0.0 for expert in experts))
    return {name: amount for name, amount in (("CPU", 1), ("GPU", gpus), ("memory", memory)) if amount}


HEARTBEAT = 5.0
"""Seconds after which `next_events` returns without an event, as a sign of life."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The URL of a server, and its name for the base model."""

    root: str
    model: str


class ServerActor:
    """Call `start`, then `next_events` repeatedly, one at a time; `stop` at any time."""

    def __init__(self, request: ServerRequest, timeouts: Timeouts) -> None:
        self._request = request
        self._timeouts = timeouts
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._server: Server | None = None
        self._watcher: asyncio.Task[Any] | None = None

    async def node(self) -> str:
        """The address of the node that this actor runs on."""
        import ray

        return str(ray.util.get_node_ip_address())

    async def start(self) -> ServedModel:
        """Starts the server; returns once it has answered. Raises FleetError."""
        request = self._request
        specs, _ = await asyncio.to_thread(
            local_servers,
            [
                expert.model_copy(update={"gpus": _gpus() if RUNTIMES[expert.runtime].gpus else ()})
                for expert in request.experts
            ],
            cache=request.models,
            logs=request.logs,
            python=Path(sys.executable),
            report=self._events.put_nowait,
            base_folder=request.base_folder,
            host=await self.node(),
        )
        log = request.logs / f"{request.name}.log"
        spec = replace(_doubly_supervised(specs[0], self._timeouts), key=request.name, log=log)
        assert spec.model is not None
        self._server = Server(
            spec, session=probe.open_probe_session(), report=self._events.put_nowait, timeouts=self._timeouts
        )
        await self._server.start()
        self._watcher = asyncio.create_task(self._server.watch())
        return ServedModel(spec.root, spec.model)

    async def next_events(self) -> list[str]:
        """The events since the last call, one line each; waits up to HEARTBEAT for the first. Raises what ended the
        watch."""
        assert self._watcher is not None, "next_events() follows start()"
        first = asyncio.ensure_future(self._events.get())
        try:
            await asyncio.wait({first, self._watcher}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not first.done():
                first.cancel()
        if not first.done() or first.cancelled():
            if self._watcher.done():
                self._watcher.result()
            return []
        events = [first.result()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    async def stop(self) -> None:
        """Ends the server and every process that it started."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()


def _doubly_supervised(spec: ServerSpec, timeouts: Timeouts) -> ServerSpec:
    """Adds a second supervisor process: when an actor ends, Ray ends its children by SIGKILL. The outer supervisor
    alone would thus leave the server's workers without one."""
    outer = (sys.executable, "-P", supervisor.__file__, "0", str(timeouts.grace))
    return replace(spec, argv=(*outer, *spec.argv))


def _gpus() -> tuple[int, ...]:
    """The GPUs that Ray assigned to this actor; the declared numbers do not apply to the cluster."""
    import ray

    return tuple(int(one) for one in ray.get_runtime_context().get_accelerator_ids().get("GPU", []))


START_TIMEOUT = 1600.0
"""Seconds from placement to the first answer: a conversion of weights and the slowest server."""
PLACEMENT_NOTICE = 3.0
"""Seconds without placement after which the wait is reported."""
SILENCE_TIMEOUT = 30.0
"""Seconds without any response of a node after which its server counts as lost."""
_UNITS = {"CPU": "CPU", "GPU": "GPU", "memory": "GB of memory"}


class ServerSupervisor:
    """Call `place`, `start`, then `follow`; `stop` at any point, once nothing else awaits these. `changed` is called
    whenever the server's address changes or is lost."""

    def __init__(
        self,
        request: ServerRequest,
        *,
        ray: Any,
        report: Callable[[str], None],
        changed: Callable[[], None],
        timeouts: Timeouts,
        placement_timeout: float,
    ) -> None:
        self.request = request
        self.served: ServedModel | None = None
        self._name = f"server {request.name!r}"
        self._ray, self._report, self._changed, self._timeouts = ray, report, changed, timeouts
        self._placement_timeout = placement_timeout
        self._actor: Any = None
        self._node = ""

    async def place(self) -> None:
        """Returns once a node has accepted it. Raises FleetError with what is missing, after the placement timeout."""
        resources = self.request.resources
        remote = self._ray.remote(ServerActor).options(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            memory=resources.get("memory"),
            scheduling_strategy="SPREAD",
            max_restarts=0,
            max_concurrency=16,
        )
        self._actor = remote.remote(self.request, self._timeouts)
        node = asyncio.ensure_future(self._actor.node.remote())
        try:
            self._node = await self._placed(node)
        finally:
            node.cancel()  # or its error, once the actor has ended, would never be retrieved

    async def _placed(self, node: asyncio.Future[str]) -> str:
        resources, timeout = self.request.resources, self._placement_timeout
        done, _ = await asyncio.wait({node}, timeout=min(PLACEMENT_NOTICE, timeout))
        if not done:
            self._report(f"{self._name} waits up to {timeout:g} s for room: {_shortage(resources, self._ray)}")
        try:
            async with asyncio.timeout(max(0.0, timeout - PLACEMENT_NOTICE)):
                return str(await self._result(node))
        except TimeoutError:
            what = f"found no room within {timeout:g} s: {_shortage(resources, self._ray)}"
            raise FleetError(f"{self._name} {what}; add nodes, or declare fewer replicas") from None

    async def start(self) -> None:
        """Returns once the server has answered. Raises FleetError."""
        begin = time.monotonic()
        try:
            async with asyncio.timeout(START_TIMEOUT):
                self.served = await self._result(self._actor.start.remote())
        except TimeoutError:
            raise FleetError(f"{self._name} was not ready on node {self._node} within {START_TIMEOUT:g} s") from None
        self._changed()  # before the report, whose readers expect the address to be published
        self._report(f"{self._name} serves at {self.served.root} after {time.monotonic() - begin:.1f} s")

    async def follow(self) -> Never:
        """Reports the server's events; when it is lost, starts it elsewhere, after growing delays. Ends by cancellation
        only."""
        await restart_on_failure(
            self._wait_for_failure,
            stop=self.stop,
            start=self._place_and_start,
            timeouts=self._timeouts,
            report=lambda failure, delay: self._report(
                f"{self._name} {failure}; restarting it on a node with free capacity in {delay:g} s"
            ),
        )

    async def _place_and_start(self) -> None:
        await self.place()
        await self.start()

    async def _wait_for_failure(self) -> str:
        """Reports events until the server is lost; returns why."""
        failure = await self._report_events()
        self.served = None
        self._changed()
        return failure

    async def _report_events(self) -> str:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT + SILENCE_TIMEOUT):
                    events = await self._result(self._actor.next_events.remote())
            except TimeoutError:
                return f"is abandoned: node {self._node} has not responded for {SILENCE_TIMEOUT:g} s"
            except FleetError as error:
                return f"is lost with its place on node {self._node} ({str(error).splitlines()[0]})"
            for line in events:
                self._report(f"node {self._node}: {line}")

    async def stop(self) -> None:
        """Ends the server and its actor. May be repeated, also if the node is gone."""
        actor, self._actor, self.served = self._actor, None, None
        if actor is None:
            return
        with suppress(TimeoutError, FleetError):
            async with asyncio.timeout(self._timeouts.grace + HEARTBEAT):
                await self._result(actor.stop.remote())
        with suppress(Exception):  # it may be gone, and Ray with it; its supervisor process ends what is left
            self._ray.kill(actor)

    async def _result(self, call: Awaitable[Any]) -> Any:
        """Awaits a call of the actor. Raises its FleetError, or one that reports the lost actor."""
        errors = self._ray.exceptions
        try:
            return await call
        except errors.RayTaskError as error:
            if isinstance(error.cause, FleetError):
                raise FleetError(f"node {self._node}: {error.cause}") from None
            raise FleetError(f"{self._name} failed on node {self._node}: {error.cause!r}") from error
        except errors.RayError as error:
            raise FleetError(f"{self._name}: {_first_line(error)}") from error


def _shortage(needed: Mapping[str, float], ray: Any) -> str:
    """The resources that a server needs, those of the cluster in total and free, and the number of nodes."""
    try:
        total, free = ray.cluster_resources(), ray.available_resources()
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    except ray.exceptions.RayError as error:
        return f"it needs {_amounts(needed, needed)}; the resources of the cluster are unknown ({error})"
    missing = {name: amount - free.get(name, 0.0) for name, amount in needed.items() if free.get(name, 0.0) < amount}
    reason = f"missing: {_amounts(missing, missing)}" if missing else "enough in all, but not on any one node"
    return (
        f"it needs {_amounts(needed, needed)}; the {nodes} node{'' if nodes == 1 else 's'} of the cluster have "
        f"{_amounts(total, needed)}, of which {_amounts(free, needed)} are free ({reason})"
    )


def _amounts(amounts: Mapping[str, float], names: Mapping[str, float]) -> str:
    values = {name: amounts.get(name, 0.0) / (GB if name == "memory" else 1) for name in names}
    return " and ".join(f"{value:.3g} {_UNITS[name]}" for name, value in values.items())


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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
        await run_together(server.place() for server in self._supervisors)
        await run_together(server.start() for server in self._supervisors)
        self._followers = [supervised(server.follow, "follow-server") for server in self._supervisors]

    async def _close(self) -> None:
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in self._supervisors))

    def endpoints(self) -> dict[str, tuple[Endpoint, ...]]:
        """The endpoints of each expert's replicas that are up. If none is up, the last known endpoint: requests to it
        fail, and their breaker notices when it is up again."""
        found: dict[str, tuple[Endpoint, ...]] = {}
        for server in self._supervisors:
            key, experts = server.request.key, server.request.experts
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
