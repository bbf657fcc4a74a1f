"""Serves the Unix socket at which gateway processes request experts from the `Residency` of `coe up`.

Each gateway process has one connection; when it ends, its requests end too. The server sends the tiers of the experts
at the start and at every change, and the numbers of waiting requests at intervals. `coe.fleet.residency.client` is the
gateway's side and describes the messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coe.fleet.residency.client import LINK, MAX_LINE_BYTES, encode, read_messages
from coe.fleet.residency.managed_server import plan_devices
from coe.fleet.residency.policy import Ticket, Tier
from coe.fleet.residency.residency import Residency
from coe.fleet.specs import ServerSpec
from coe.registry import Registry
from coe.settings import Settings
from coe.terminal import print_line

PUBLISH_INTERVAL = 0.2
"""Seconds between two messages about waiting requests, at least."""
MAX_UNREAD_BYTES = 2**22
"""Bytes that a gateway process may leave unread. Beyond, it counts as hung: its connection and its requests end."""


@asynccontextmanager
async def running_residency(
    settings: Settings, registry: Registry, servers: Sequence[ServerSpec]
) -> AsyncIterator[Path]:
    """Run the scheduler of shared devices for the length of the block.

    Yields the address of its socket, to which a link in the state folder points. Raises FleetError for a failed start.
    """
    assert registry.residency is not None
    residency = Residency(
        plan_devices(registry, servers),
        first=[registry.general_expert, *registry.assignment.values()],
        max_wait=registry.residency.max_wait,
        report=print_line,
    )
    with TemporaryDirectory(prefix="coe-") as folder:  # a short path
        address = Path(folder) / "residency.sock"
        async with residency, serve_residency(residency, address):
            (settings.home / LINK).unlink(missing_ok=True)
            (settings.home / LINK).symlink_to(address)
            yield address


@asynccontextmanager
async def serve_residency(residency: Residency, address: Path) -> AsyncIterator[None]:
    """Listens at `address` for the length of the block."""
    clients: set[_ClientConnection] = set()
    publisher = _Publisher(residency, clients)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _ClientConnection(residency, writer)
        clients.add(client)
        try:
            client.send({"tiers": residency.tiers()})
            async for message in read_messages(reader):
                client.handle(message)
        finally:
            clients.discard(client)
            client.close()

    server = await asyncio.start_unix_server(serve, address, limit=MAX_LINE_BYTES)
    residency.on_change = publisher.changed
    try:
        yield
    finally:
        residency.on_change = lambda _tiers: None
        publisher.close()
        server.close()
        for client in list(clients):
            client.close()


class _Publisher:
    """Sends the tiers to all gateway processes: at once if a tier changed, else within PUBLISH_INTERVAL."""

    def __init__(self, residency: Residency, clients: Collection[_ClientConnection]) -> None:
        self._residency, self._clients = residency, clients
        self._timer: asyncio.TimerHandle | None = None
        self._sent: dict[str, dict[str, Any]] = {}

    def changed(self, tiers: bool) -> None:
        if tiers:
            self._publish()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PUBLISH_INTERVAL, self._publish)

    def _publish(self) -> None:
        self.close()
        if (tiers := self._residency.tiers()) != self._sent:
            self._sent = tiers
            for client in self._clients:
                client.send({"tiers": tiers})

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _ClientConnection:
    """One gateway process; it numbers its own requests."""

    def __init__(self, residency: Residency, writer: asyncio.StreamWriter) -> None:
        self._residency, self._writer = residency, writer
        self._tickets: dict[int, Ticket] = {}
        self._closed = False

    def send(self, message: dict[str, Any]) -> None:
        if self._closed or self._writer.is_closing():
            return
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._writer.transport.abort()

    def handle(self, message: dict[str, Any]) -> None:
        if "acquire" in message:
            self._hold(message)
        elif "report" in message:
            self.send({"report": message["report"], "devices": self._residency.report()})
        elif "end" in message and (ticket := self._tickets.pop(message["end"], None)) is not None:
            self._residency.end(ticket)

    def _hold(self, message: dict[str, Any]) -> None:
        number, expert = int(message["acquire"]), str(message["expert"])
        tier = _public_tier(self._residency.tier(expert))
        ticket = self._residency.acquire(
            expert,
            timeout=float(message["timeout"]),
            stand_in=str(message["stand_in"]),
            granted=partial(self.send, {"granted": number, "tier": tier}),
            refused=partial(self._refused, number, tier),
        )
        if ticket is not None:
            self._tickets[number] = ticket

    def _refused(self, number: int, tier: str, reason: str, retry_after: float) -> None:
        waited = self._tickets.pop(number, None) is not None  # else it was refused at once
        refusal = {"refused": number, "reason": reason, "retry_after": retry_after}
        self.send(refusal | ({"tier": tier} if waited else {}))

    def close(self) -> None:
        """Ends the requests of this process."""
        self._closed = True
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            self._residency.end(ticket)
        self._writer.close()


def _public_tier(tier: Tier) -> str:
    """One of the four tiers that operators see."""
    return tier if tier in ("awake", "asleep", "stopped") else "switching"
