"""Fake servers of 10 GB each that share a device."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.fleet.residency.managed_server import Device, ScheduledServer
from coe.fleet.residency.policy import ServerProfile
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.socket_server import serve_residency
from coe.fleet.specs import Timeouts
from coe.settings import Endpoint
from tests.fleet.fake_fleet import QUICK, Fakes

SIZE = 10.0


class SharedDevice:
    """Fake servers on the device "d": `modes` by name; those in `sleepers` sleep instead of being stopped."""

    def __init__(
        self,
        fakes: Fakes,
        modes: Mapping[str, str],
        *,
        memory: float = SIZE,
        sleepers: str = "",
        timeouts: Timeouts = QUICK,
    ) -> None:
        self.fakes, self._timeouts = fakes, timeouts
        servers = []
        for name, mode in modes.items():
            sleeps = name in sleepers
            profile = ServerProfile(name, SIZE, sleeps=sleeps)
            servers.append(ScheduledServer(profile, fakes.spec(mode, key=name), 1 if sleeps else None))
        self.specs = {server.key: server.spec for server in servers}
        names = {server.key: server.key for server in servers}
        self.device = Device("d", memory, 0.0, tuple(servers), names)

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        return {name: Endpoint(f"{spec.root}/v1", "a-model") for name, spec in self.specs.items()}

    def residency(self, *, first: str, max_wait: float = 0.2) -> Residency:
        return Residency(
            [self.device], first=[first], max_wait=max_wait, report=self.fakes.report, timeouts=self._timeouts
        )

    @asynccontextmanager
    async def open(self, *, first: str = "a", max_wait: float = 0.2) -> AsyncIterator[tuple[Residency, Path]]:
        """The running residency, and the address of its socket."""
        address = self.fakes.folder / "s"
        async with self.residency(first=first, max_wait=max_wait) as residency, serve_residency(residency, address):
            yield residency, address

    @asynccontextmanager
    async def connected(
        self, *, first: str = "a", max_wait: float = 0.2
    ) -> AsyncIterator[tuple[Residency, ResidencyClient]]:
        """The running residency, and a connected client."""
        async with (
            self.open(first=first, max_wait=max_wait) as (residency, address),
            connected_client(address) as client,
        ):
            yield residency, client
