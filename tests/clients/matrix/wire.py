"""A relay in front of the gateway that notes the pieces in which an answer arrives.

Some agents print an answer only once it is complete. What reached their socket shows whether it was streamed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import accumulate

from tests.clients.matrix.script import ANSWER, Turn

_WORD = re.compile("|".join(f'"({re.escape(word)})"' for word in dict.fromkeys(Turn(ANSWER).words)))
"""A word of the answer as a whole JSON string, as in the event of a stream."""


class Wire:
    """Relays connections to a port. `reads` holds what came back on each connection, as it was read."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.port = 0
        self.reads: list[list[bytes]] = []
        self._open: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for writer in self._open.values():
                writer.close()
            await asyncio.gather(*filter(None, self._open))

    def pieces(self) -> list[str]:
        """Return the words of the answer, those that were read at once as one piece."""
        return [piece for reads in self.reads for piece in _pieces(reads)]

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self._target)
        self._open[asyncio.current_task()] = writer
        self.reads.append([])
        pumps = [
            asyncio.create_task(_pump(reader, forth, [])),
            asyncio.create_task(_pump(back, writer, self.reads[-1])),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            forth.close()
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reads: list[bytes]) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            reads.append(data)
            writer.write(data)
            await writer.drain()


def _pieces(reads: list[bytes]) -> list[str]:
    ends = list(accumulate(len(read) for read in reads))
    pieces: dict[int, str] = {}
    for found in _WORD.finditer(b"".join(reads).decode(errors="replace")):
        number = next(number for number, end in enumerate(ends) if found.end() <= end)
        pieces[number] = pieces.get(number, "") + found[found.lastindex or 0]
    return list(pieces.values())
