"""Serves the Unix socket at which gateway processes request experts from the `Residency` of `coe up`.

Each gateway process has one connection; when it ends, its requests end too. The server sends the tiers of the experts
at the start and at every change. `coe.fleet.residency.client` is the gateway's side and describes the messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from coe.fleet.residency.client import MAX_LINE_BYTES, encode, read_messages
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.scheduler import Ticket

MAX_UNREAD_BYTES = 2**22
"""Bytes that a gateway process may leave unread. Beyond, it counts as hung: its connection and its requests end."""


@asynccontextmanager
async def serve_residency(residency: Residency, address: Path) -> AsyncIterator[None]:
    """Listens at `address` for the length of the block."""
    clients: set[_ClientConnection] = set()

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

    def publish_tiers() -> None:
        message = {"tiers": residency.tiers()}
        for client in clients:
            client.send(message)

    server = await asyncio.start_unix_server(serve, address, limit=MAX_LINE_BYTES)
    residency.on_change = publish_tiers
    try:
        yield
    finally:
        residency.on_change = lambda: None
        server.close()
        for client in list(clients):
            client.close()


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
        elif "end" in message and (ticket := self._tickets.pop(message["end"], None)) is not None:
            self._residency.end(ticket)

    def _hold(self, message: dict[str, Any]) -> None:
        number = int(message["acquire"])
        ticket = self._residency.acquire(
            str(message["expert"]),
            category=str(message["category"]),
            timeout=float(message["timeout"]),
            stand_in=str(message["stand_in"]),
            granted=partial(self.send, {"granted": number}),
            refused=partial(self._refused, number),
        )
        if ticket is not None:
            self._tickets[number] = ticket

    def _refused(self, number: int, reason: str, retry_after: float) -> None:
        self._tickets.pop(number, None)
        self.send({"refused": number, "reason": reason, "retry_after": retry_after})

    def close(self) -> None:
        """Ends the requests of this process."""
        self._closed = True
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            self._residency.end(ticket)
        self._writer.close()
