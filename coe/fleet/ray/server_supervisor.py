"""One server on a cluster, seen from `coe up`: given a node, started there, followed, moved when lost.

Says what a cluster lacks for a server that finds no room on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Never

from coe.errors import FleetError
from coe.fleet.planning import adapters_of
from coe.fleet.ray.server_actor import BEAT, Served, ServerActor
from coe.fleet.ray.server_request import GB, Need, ServerRequest
from coe.fleet.timeouts import Timeouts

_WORDS = {"CPU": "CPU", "GPU": "GPU", "memory": "GB of memory"}


def shortage(need: Need, ray: Any) -> str:
    """What one server needs, what the cluster has and has free of that, and on how many nodes."""
    wanted = need.resources
    try:
        has, free = ray.cluster_resources(), ray.available_resources()
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    except ray.exceptions.RayError as error:
        return f"it needs {_told(wanted, wanted)}; the cluster does not say what it has ({error})"
    short = {name: amount - free.get(name, 0.0) for name, amount in wanted.items() if free.get(name, 0.0) < amount}
    missing = f"missing: {_told(short, short)}" if short else "enough in all, but not on any one node"
    return (
        f"it needs {_told(wanted, wanted)}; the {nodes} node{'' if nodes == 1 else 's'} of the cluster have "
        f"{_told(has, wanted)}, of which {_told(free, wanted)} are free ({missing})"
    )


def _told(amounts: Mapping[str, float], names: Mapping[str, float]) -> str:
    return " and ".join(_one(name, amounts.get(name, 0.0)) for name in names)


def _one(name: str, amount: float) -> str:
    return f"{amount / GB if name == 'memory' else amount:.3g} {_WORDS[name]}"


START = 1600.0
"""Seconds at most from a node to the first answer: a conversion of weights and the slowest server."""
HUSH = 3.0
"""Seconds without room after which it is said what is waited for."""
SILENCE = 30.0
"""Seconds that a node may say nothing at all before what runs there is given up."""
AGAIN = 1.0


class ServerSupervisor:
    """`place`, `start`, then `follow`; `stop` at any point, once nobody else awaits these. `changed` is called whenever
    it is served elsewhere or nowhere."""

    def __init__(
        self,
        order: ServerRequest,
        *,
        ray: Any,
        say: Callable[[str], None],
        changed: Callable[[], None],
        pace: Timeouts,
        room_within: float,
    ) -> None:
        self.order = order
        self.served: Served | None = None
        self.adapters: Mapping[str, Path] = adapters_of(order.sharers, beside=order.beside)
        """The LoRA folders that it serves, by name."""
        self._name = f"server {order.name!r}"
        self._ray, self._say, self._changed, self._pace = ray, say, changed, pace
        self._room_within = room_within
        self._actor: Any = None
        self._node = ""

    async def place(self) -> None:
        """Return once a node has taken it. Raises FleetError that says what is missing, after `room_within` seconds."""
        need = self.order.need
        remote = self._ray.remote(ServerActor).options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            memory=need.memory or None,
            scheduling_strategy="SPREAD",
            max_restarts=0,
            max_concurrency=16,
        )
        self._actor = remote.remote(self.order, self._pace)
        asked = asyncio.ensure_future(_as_future(self._actor.node.remote()))
        try:
            self._node = await self._placed(asked)
        finally:
            asked.cancel()  # or its error, once the actor has been ended, would be nobody's

    async def _placed(self, asked: asyncio.Future[str]) -> str:
        need = self.order.need
        done, _ = await asyncio.wait({asked}, timeout=min(HUSH, self._room_within))
        if not done:
            self._say(f"{self._name} waits up to {self._room_within:g} s for room: {shortage(need, self._ray)}")
        try:
            async with asyncio.timeout(max(0.0, self._room_within - HUSH)):
                return str(await self._asked(asked))
        except TimeoutError:
            what = f"found no room within {self._room_within:g} s: {shortage(need, self._ray)}"
            raise FleetError(f"{self._name} {what}; add nodes, or declare fewer replicas") from None

    async def start(self) -> None:
        """Return once it has answered. Raises FleetError."""
        begin = time.monotonic()
        try:
            async with asyncio.timeout(START):
                self.served = await self._asked(self._actor.start.remote(self.adapters))
        except TimeoutError:
            raise FleetError(f"{self._name} was not ready on node {self._node} within {START:g} s") from None
        self._say(f"{self._name} serves at {self.served.root} after {time.monotonic() - begin:.1f} s")
        self._changed()

    async def follow(self) -> Never:
        """Say what is said there; when it is lost start it elsewhere, after pauses that grow. Ends by cancellation."""
        delay = 0.0
        while True:
            ready = time.monotonic()
            trouble = await self._trouble()
            up = time.monotonic() - ready
            self.served = None
            self._changed()
            while trouble:
                await self.stop()
                delay = self._pace.backoff.next(delay, up=up)
                self._say(f"{self._name} {trouble}; starting it anew, on a node that has room, in {delay:g} s")
                await asyncio.sleep(delay)
                up = 0.0
                trouble = await self._trouble_returning()

    async def _trouble(self) -> str:
        """Why it is lost, once it is."""
        silent_since = time.monotonic()
        while time.monotonic() - silent_since < SILENCE:
            try:
                async with asyncio.timeout(BEAT + SILENCE):
                    lines = await self._asked(self._actor.said.remote())
            except TimeoutError:
                break
            except _Unavailable:
                await asyncio.sleep(AGAIN)
                continue
            except FleetError as error:
                return f"is lost with its place on node {self._node} ({str(error).splitlines()[0]})"
            silent_since = time.monotonic()
            for line in lines:
                self._say(f"node {self._node}: {line}")
        return f"is given up: node {self._node} has said nothing for {SILENCE:g} s"

    async def _trouble_returning(self) -> str:
        try:
            await self.place()
            await self.start()
        except FleetError as error:
            return f"did not come back ({str(error).splitlines()[0]})"
        return ""

    async def load(self, adapters: Mapping[str, Path]) -> list[str]:
        """Serve these LoRA folders too; the names that were new. One that is lost just now has them when it returns.
        Raises FleetError."""
        new = {name: folder for name, folder in adapters.items() if self.adapters.get(name) != folder}
        if new and self.served is not None:
            await self._asked(self._actor.load.remote(new))
        self.adapters = {**self.adapters, **new}
        return list(new)

    async def unload(self, name: str) -> None:
        """Serve this adapter no longer. Raises FleetError."""
        if self.served is not None:
            await self._asked(self._actor.unload.remote(name))
        self.adapters = {other: folder for other, folder in self.adapters.items() if other != name}

    async def stop(self) -> None:
        """End it and its place. Safe to repeat, and where the node is gone."""
        actor, self._actor, self.served = self._actor, None, None
        if actor is None:
            return
        with suppress(TimeoutError, FleetError):
            async with asyncio.timeout(self._pace.grace + BEAT):
                await self._asked(actor.stop.remote())
        with suppress(Exception):  # it may be gone, and Ray with it; its warden ends what is left
            self._ray.kill(actor)

    async def _asked(self, answer: Awaitable[Any]) -> Any:
        """What an outpost answers. Raises its FleetError, or one that says that it is gone."""
        errors = self._ray.exceptions
        try:
            return await answer
        except errors.ActorUnavailableError as error:
            raise _Unavailable(_first(error)) from None
        except errors.RayTaskError as error:
            if isinstance(error.cause, FleetError):
                raise FleetError(f"node {self._node}: {error.cause}") from None
            raise FleetError(f"{self._name} failed on node {self._node}: {error.cause!r}") from error
        except errors.RayError as error:
            raise FleetError(f"{self._name}: {_first(error)}") from error


class _Unavailable(FleetError):
    """Cannot be asked just now."""


async def _as_future(answer: Awaitable[Any]) -> Any:
    return await answer


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
