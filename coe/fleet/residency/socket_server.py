"""Where the gateway's processes ask for experts: a Unix socket in front of the Residency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from coe.fleet.residency.protocol import LONGEST, line, messages
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.scheduler import Ticket

SLOW = 2**22
"""Bytes that a process leaves unread before it is taken for hung and let go, its requests with it."""


@asynccontextmanager
async def desk(residency: Residency, address: Path) -> AsyncIterator[None]:
    """Answer at `address` for the length of the block."""
    visitors: set[_ClientConnection] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitor = _ClientConnection(residency, writer)
        visitors.add(visitor)
        try:
            visitor.say({"tiers": residency.tiers()})
            async for message in messages(reader):
                visitor.hear(message)
        finally:
            visitors.discard(visitor)
            visitor.leave()

    def tell() -> None:
        told = {"tiers": residency.tiers()}
        for visitor in visitors:
            visitor.say(told)

    server = await asyncio.start_unix_server(serve, address, limit=LONGEST)
    residency.changed = tell
    try:
        yield
    finally:
        residency.changed = lambda: None
        server.close()
        for visitor in list(visitors):
            visitor.leave()


class _ClientConnection:
    """One gateway process: its requests by the numbers it gave them."""

    def __init__(self, residency: Residency, writer: asyncio.StreamWriter) -> None:
        self._residency, self._writer = residency, writer
        self._tickets: dict[int, Ticket] = {}
        self._gone = False

    def say(self, message: dict[str, Any]) -> None:
        if self._gone or self._writer.is_closing():
            return
        self._writer.write(line(message))
        if self._writer.transport.get_write_buffer_size() > SLOW:
            self._writer.transport.abort()

    def hear(self, message: dict[str, Any]) -> None:
        if "hold" in message:
            self._hold(message)
        elif "end" in message and (ticket := self._tickets.pop(message["end"], None)) is not None:
            self._residency.end(ticket)
        elif "show" in message:
            self.say({"tiers": self._residency.tiers()})

    def _hold(self, message: dict[str, Any]) -> None:
        number = int(message["hold"])
        ticket = self._residency.hold(
            str(message["expert"]),
            category=str(message["category"]),
            within=float(message["within"]),
            stand_in=str(message["stand_in"]),
            granted=partial(self.say, {"granted": number}),
            refused=partial(self._refused, number),
        )
        if ticket is not None:
            self._tickets[number] = ticket

    def _refused(self, number: int, why: str, retry_after: float) -> None:
        self._tickets.pop(number, None)
        self.say({"refused": number, "why": why, "retry_after": retry_after})

    def leave(self) -> None:
        """Its requests are over."""
        self._gone = True
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            self._residency.end(ticket)
        self._writer.close()
