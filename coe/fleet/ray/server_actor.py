"""Runs one server on a node of the cluster: planned, made ready, watched, restarted; ended with its actor.

A class of plain Python; `station.py` makes a Ray actor of it. The actor's process is the parent of the server's wardens
(warden.py), so that the server ends with it, however it ends: when `coe up` does, when the node dies or leaves.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from coe.fleet import probe, supervisor
from coe.fleet.planning import local_servers
from coe.fleet.ray.server_request import ServerRequest
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec
from coe.fleet.timeouts import Timeouts

BEAT = 5.0
"""Seconds after which `said` returns though nothing was said: a sign of life."""


@dataclass(frozen=True, slots=True)
class Served:
    """Where a server is, and what it calls the model of its own."""

    root: str
    model: str


class ServerActor:
    """One at a time: `start`, then `said` again and again; `stop` at any time."""

    def __init__(self, order: ServerRequest, pace: Timeouts) -> None:
        self._order = order
        self._pace = pace
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._server: Server | None = None
        self._watcher: asyncio.Task[Any] | None = None

    async def node(self) -> str:
        """The address of the node that this runs on."""
        import ray

        return str(ray.util.get_node_ip_address())

    async def start(self, adapters: Mapping[str, Path]) -> Served:
        """Start the server with these LoRA folders and return when it has answered. Raises FleetError."""
        order = self._order
        host = await self.node()
        specs, _ = await asyncio.to_thread(
            local_servers,
            [replace(one, gpus=_devices() if one.runtime == "vllm" else ()) for one in order.sharers],
            cache=order.models,
            logs=order.logs,
            python=Path(sys.executable),
            say=self._lines.put_nowait,
            beside=order.beside,
            host=host,
        )
        spec = replace(
            _sheltered(specs[0], self._pace), key=order.name, log=order.logs / f"{order.name}.log", adapters=adapters
        )
        assert spec.model is not None
        self._server = Server(spec, session=probe.open_session(), say=self._lines.put_nowait, pace=self._pace)
        await self._server.start()
        self._watcher = asyncio.create_task(self._server.watch())
        return Served(spec.root, spec.model)

    async def said(self) -> list[str]:
        """What happened since, in lines; waits a while for the first one. Raises what ended the watch."""
        assert self._watcher is not None, "said() follows start()"
        first = asyncio.ensure_future(self._lines.get())
        try:
            await asyncio.wait({first, self._watcher}, timeout=BEAT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not first.done():
                first.cancel()
        if not first.done() or first.cancelled():
            if self._watcher.done():
                self._watcher.result()
            return []
        lines = [first.result()]
        while not self._lines.empty():
            lines.append(self._lines.get_nowait())
        return lines

    async def load(self, adapters: Mapping[str, Path]) -> list[str]:
        """As Server.load."""
        assert self._server is not None
        return await self._server.load(adapters)

    async def unload(self, name: str) -> None:
        """As Server.unload."""
        assert self._server is not None
        await self._server.unload(name)

    async def stop(self) -> None:
        """End the server and every process that it started."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()


def _sheltered(spec: ServerSpec, pace: Timeouts) -> ServerSpec:
    """Under a warden of a warden: Ray ends the children of an actor by SIGKILL when that ends, the first warden among
    them, and with it alone the server's workers would be nobody's."""
    shelter = (sys.executable, "-P", supervisor.__file__, "0", str(pace.grace))
    return replace(spec, argv=(*shelter, *spec.argv))


def _devices() -> tuple[int, ...]:
    """Those that Ray gave to this actor; whichever the declaration numbers, the cluster has others."""
    import ray

    return tuple(int(one) for one in ray.get_runtime_context().get_accelerator_ids().get("GPU", []))
