"""All servers of one service on a cluster, as Fleet is for one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coe.fleet.fleet import to_the_end
from coe.fleet.ray.server_request import Order
from coe.fleet.ray.server_supervisor import Station
from coe.fleet.specs import LocalExpert
from coe.fleet.timeouts import Pace
from coe.settings import Endpoint
from coe.supervision import supervised

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
        orders: Sequence[Order],
        *,
        ray: Any,
        say: Callable[[str], None],
        pace: Pace | None = None,
        room_within: float = ROOM_WITHIN,
    ) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._stations = [
            Station(
                order,
                ray=ray,
                say=say,
                changed=lambda: self.changed(),
                pace=pace or Pace(),
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

    async def _each(self, verb: Callable[[Station], Any]) -> None:
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

    def _of(self, key: str) -> list[Station]:
        return [station for station in self._stations if station.order.key == key]
