"""Runs one server on a node of the cluster: plans it, starts it, restarts it, and ends it with the actor.

A `ServerRequest` describes the server and its resources. It travels to the node, so it holds no secret.
`ServerSupervisor` makes a Ray actor of the plain class `ServerActor`. The actor's process is the parent of the server's
supervisor process (`coe/fleet/supervisor.py`), so the server ends with the actor: when `coe up` ends, the node dies or
leaves.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coe.fleet import probe, supervisor
from coe.fleet.planning import ENGINES, group_by_server, local_servers
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec, Timeouts
from coe.registry import ExpertSpec
from coe.registry.runtimes import RUNTIMES

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
