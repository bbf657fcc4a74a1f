"""All servers of one service on a cluster, as Fleet is for one machine.

Runs the experts' servers on a Ray cluster for `coe up --engine ray`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coe.errors import ConfigError
from coe.fleet.fleet import to_the_end
from coe.fleet.planning import Shared, shared_by
from coe.fleet.ray.server_request import ServerRequest, orders
from coe.fleet.ray.server_supervisor import ServerSupervisor
from coe.fleet.specs import LocalExpert
from coe.fleet.timeouts import Timeouts
from coe.fleet.validation import mistakes
from coe.registry import Registry
from coe.settings import Endpoint, Settings
from coe.supervision import supervised
from coe.terminal import say

ROOM_WITHIN = 120.0
"""Seconds that a server waits for a node with room; a cluster that grows by itself takes a minute or so."""


class ClusterFleet:
    """`async with ClusterFleet(orders, ray=ray, say=print):` runs the servers for the length of the block.

    Entering gives each a node, as far apart as there is room, starts all and returns when each has answered, or raises
    FleetError with the end of the failing server's log, or what the cluster lacks. Inside, a server that dies is
    restarted where it is, as in Fleet, and one whose node dies on another node; `changed` is called whenever addresses
    have changed. Leaving, failing and being cancelled end every server and actor; when this process is killed, the
    cluster ends them.
    """

    def __init__(
        self,
        orders: Sequence[ServerRequest],
        *,
        ray: Any,
        say: Callable[[str], None],
        pace: Timeouts | None = None,
        room_within: float = ROOM_WITHIN,
    ) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._stations = [
            ServerSupervisor(
                order,
                ray=ray,
                say=say,
                changed=lambda: self.changed(),
                pace=pace or Timeouts(),
                room_within=room_within,
            )
            for order in orders
        ]
        self._last: dict[str, tuple[str, str]] = {}
        self._followers: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        try:
            await self._each(lambda station: station.place())
            await self._each(lambda station: station.start())
        except BaseException:
            await to_the_end(self._close())
            raise
        self._followers = [supervised(station.follow, "follow-station") for station in self._stations]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await to_the_end(self._close())

    async def _each(self, verb: Callable[[ServerSupervisor], Any]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for station in self._stations:
                    group.create_task(verb(station))
        except ExceptionGroup as failures:  # the first failure cancels the others
            raise failures.exceptions[0] from None

    async def _close(self) -> None:
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        await asyncio.gather(*(station.stop() for station in self._stations))

    def endpoints(self, experts: Sequence[LocalExpert], keys: Sequence[str]) -> dict[str, tuple[Endpoint, ...]]:
        """Where each of the experts is served, whose servers have these keys: at those replicas that are up. Where none
        is, where the last one was: requests fail there, and learn so, until one is back."""
        found: dict[str, tuple[Endpoint, ...]] = {}
        for expert, key in zip(experts, keys, strict=True):
            up = [station.served for station in self._of(key) if station.served is not None]
            if up:
                self._last[key] = (up[0].root, up[0].model)
            there = [(one.root, one.model) for one in up] or [self._last[key]]
            found[expert.name] = tuple(
                Endpoint(f"{root}/v1", expert.name if expert.adapter else model) for root, model in there
            )
        return found

    async def load(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """Serve these LoRA folders too, by name, at every replica of `key`; what was new. Raises FleetError."""
        loaded = [await station.load(adapters) for station in self._of(key)]
        return loaded[0]

    def superfluous(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """The adapters that `key` serves beyond these."""
        there = dict.fromkeys(name for station in self._of(key) for name in station.adapters)
        return [name for name in there if name not in adapters]

    async def unload(self, key: str, adapters: Mapping[str, Path]) -> list[str]:
        """Serve no others than these any longer; what went. Raises FleetError."""
        gone = self.superfluous(key, adapters)
        for station in self._of(key):
            for name in gone:
                await station.unload(name)
        return gone

    def _of(self, key: str) -> list[ServerSupervisor]:
        return [station for station in self._stations if station.order.key == key]


Tell = Callable[[Mapping[str, tuple[Endpoint, ...]]], None]


class Spread:
    """A fleet on a cluster, with the experts that it serves: their addresses are told when either changes."""

    def __init__(self, fleet: ClusterFleet, *, running: Mapping[Shared, str], tell: Tell) -> None:
        self.fleet, self.running = fleet, running
        self._tell = tell
        self.experts: Sequence[LocalExpert] = ()
        fleet.changed = self._again

    def tell(self, experts: Sequence[LocalExpert]) -> None:
        """These are served from now on."""
        self.experts = experts
        self._again()

    def _again(self) -> None:
        keys = [self.running[shared_by(expert)] for expert in self.experts]
        self._tell(self.fleet.endpoints(self.experts, keys))


@asynccontextmanager
async def spread(settings: Settings, registry: Registry, *, ray: Any, tell: Tell) -> AsyncIterator[Spread]:
    """All servers run when the block begins, and where they do has been told. Raises ConfigError or FleetError."""
    beside = settings.config.parent
    if registry.residency is not None:
        raise ConfigError("residency is for the devices of one machine; leave it out, or `--engine ray`")
    for index, key, what in mistakes(registry.experts, beside=beside):
        raise ConfigError(f"{settings.config.name}: expert {registry.experts[index].name!r}: {key}: {what}")
    gpus_there = bool(ray.cluster_resources().get("GPU"))
    wanted = list(
        orders(registry.experts, beside=beside, models=settings.models, logs=settings.logs, gpus_there=gpus_there)
    )
    if wanted:
        say(f"starting {len(wanted)} expert server{'s' if len(wanted) > 1 else ''} on the cluster")
    running = {shared_by(order.sharers[0]): order.key for order in wanted}
    async with ClusterFleet(wanted, ray=ray, say=say) as fleet:
        found = Spread(fleet, running=running, tell=tell)
        found.tell([one for one in registry.experts if shared_by(one) in running])
        yield found
