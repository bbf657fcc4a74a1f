"""Supervises one server on a cluster from `coe up`: places it on a node, starts it there, moves it when it is lost.

It drives a `ServerActor`. When no node has enough resources, its messages say what the cluster lacks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Never

from coe.errors import FleetError
from coe.fleet.ray.server_actor import GB, HEARTBEAT, ServedModel, ServerActor, ServerRequest
from coe.fleet.server import restart_on_failure
from coe.fleet.specs import Timeouts

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
