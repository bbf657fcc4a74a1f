"""Controls one server on a shared device: starts or wakes it, puts it to sleep or stops it, and checks its health.

`Residency` calls it for each order of the scheduler. Health checks run only while the server is awake. A server whose
engine cannot sleep is stopped.

Maps declared experts to devices and to the servers that share each device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import aiohttp

from coe.errors import FleetError
from coe.fleet import probe
from coe.fleet.engines import group_by_server
from coe.fleet.residency.policy import ServerProfile
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec, Timeouts
from coe.registry import ExpertSpec, Registry
from coe.supervision import supervised

ASLEEP_SHARE = 0.05
"""Share of its memory that a sleeping server keeps on the device (graphs, the CUDA context)."""


@dataclass(frozen=True, slots=True)
class ScheduledServer:
    """A server on a shared device. `sleep_level` is None if the server is stopped instead."""

    profile: ServerProfile
    spec: ServerSpec
    sleep_level: int | None = None

    @property
    def key(self) -> str:
        return self.profile.key


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its budgets in GB, its servers, and the key of each expert's server."""

    name: str
    memory: float
    host_memory: float
    servers: tuple[ScheduledServer, ...]
    experts: Mapping[str, str]


def plan_devices(registry: Registry, specs: Sequence[ServerSpec]) -> list[Device]:
    """Returns the declared devices. `specs` are the servers that `local_servers` planned for the same experts, in
    order."""
    declared = registry.residency
    assert declared is not None
    servers: dict[str, list[ScheduledServer]] = {device.name: [] for device in declared.devices}
    experts: dict[str, dict[str, str]] = {device.name: {} for device in declared.devices}
    for group, spec in zip(group_by_server(registry.experts).values(), specs, strict=True):
        home = registry.device_of(group[0])
        assert home is not None
        servers[home].append(ScheduledServer(server_profile(group, spec.key), spec, _sleep_level(group)))
        experts[home] |= {expert.name: spec.key for expert in group}
    host_memory = declared.sleep_memory_gb / len(declared.devices)
    return [
        Device(one.name, one.memory_gb, host_memory, tuple(servers[one.name]), experts[one.name])
        for one in declared.devices
    ]


def server_profile(group: Sequence[ExpertSpec], key: str) -> ServerProfile:
    """The memory of the server that the experts of `group` share."""
    memory, level = max(expert.memory_gb or 0.0 for expert in group), _sleep_level(group)
    return ServerProfile(
        key,
        memory,
        pinned=any(expert.pinned for expert in group),
        sleeps=level is not None,
        asleep_memory=ASLEEP_SHARE * memory if level else 0.0,
        host_memory=memory if level == 1 else 0.0,
    )


def _sleep_level(group: Sequence[ExpertSpec]) -> int | None:
    return next((expert.sleep_level for expert in group if expert.sleep_level), None)


FIRST_TOKEN_TIMEOUT = 60.0
"""Seconds for the first token after waking."""


class ManagedServer:
    """One server and its process. It carries out one order at a time: the caller awaits each before the next."""

    def __init__(
        self,
        scheduled: ScheduledServer,
        *,
        session: aiohttp.ClientSession,
        report: Callable[[str], None],
        timeouts: Timeouts,
    ) -> None:
        self.profile = scheduled.profile
        self._spec = scheduled.spec
        self._sleep_level = scheduled.sleep_level or 1
        self._session, self._report, self._timeouts = session, report, timeouts
        self._server = Server(self._spec, session=session, report=report, timeouts=timeouts)
        self._client = self._spec.open_client(self._spec.root, session)
        self._watcher: asyncio.Task[None] | None = None
        self._awake_since: float | None = None
        self._retry_delay = 0.0

    @property
    def key(self) -> str:
        return self.profile.key

    async def load(self) -> None:
        """Wakes or starts the server; returns once it has answered with a token. Raises FleetError; call `take_down`
        then."""
        if self._server.running:
            await self._client.wake(level=self._sleep_level)
            await self._wait_until_ready()
        else:
            await self._server.start(keep_log=True)
        self._awake_since = time.monotonic()

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(FIRST_TOKEN_TIMEOUT):
                while not await probe.is_ready(self._spec, session=self._session):  # noqa: ASYNC110  a server's state
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise FleetError(f"gave no answer within {FIRST_TOKEN_TIMEOUT:g} s of waking") from None

    async def unload(self, *, sleep: bool) -> Literal["asleep", "stopped"]:
        """Puts the server to sleep, or stops it if `sleep` is False or going to sleep fails. Returns the new tier."""
        await self._unwatch()
        if sleep and self._server.running:
            try:
                await self._client.sleep(level=self._sleep_level)
                return "asleep"
            except FleetError as error:
                self._report(f"server {self.key!r} does not sleep and is stopped: {error}")
        await self._stop()
        return "stopped"

    async def take_down(self, failure: str) -> float:
        """Ends a failed server. Returns the seconds to wait before it may start again."""
        await self._unwatch()
        up = 0.0 if self._awake_since is None else time.monotonic() - self._awake_since
        self._retry_delay, self._awake_since = self._timeouts.restart_delay(self._retry_delay, up=up), None
        self._report(
            f"server {self.key!r} {failure}; it may start again in {self._retry_delay:g} s (log: {self._spec.log})"
        )
        await self._stop()
        return self._retry_delay

    def watch(self, on_failure: Callable[[ManagedServer, str], None]) -> None:
        """Calls `on_failure` once when the server dies or stops answering."""
        self._watcher = supervised(partial(self._watch, on_failure), f"watch-{self.key}", may_return=True)

    async def _watch(self, on_failure: Callable[[ManagedServer, str], None]) -> None:
        failure = await self._server.wait_for_failure()
        self._watcher = None
        on_failure(self, failure)

    async def _unwatch(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _stop(self) -> None:
        try:
            await self._server.stop()
        except FleetError as error:  # stuck in the kernel: there is nothing else to do about it
            self._report(str(error))

    async def aclose(self) -> None:
        """Ends the server for good. Raises FleetError if even SIGKILL does not end it."""
        await self._unwatch()
        await self._server.stop()
