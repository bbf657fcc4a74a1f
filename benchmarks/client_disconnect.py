"""Delay until the expert's server sees that a client disconnected: before the first chunk, and in mid-stream."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.harness import GATEWAY_PORT, gateway, head
from benchmarks.streaming_upstream import HEAD, chunk, event

WAITING_PORT = 18098


def disconnect_delays(home: Path, *, count: int = 100) -> dict[str, Any]:
    """Return median and maximum milliseconds from the client's close to the end of the server's connection."""
    with tempfile.TemporaryDirectory() as folder:
        base = f"http://127.0.0.1:{WAITING_PORT}/v1"
        with gateway(Path(folder), workers=1, home=home, base_url=base):
            found = uvloop.run(_measure(count))
    return {
        phase: {"p50": round(statistics.median(times), 2), "longest": round(max(times), 2)}
        for phase, times in found.items()
    }


async def _measure(count: int) -> dict[str, list[float]]:
    asked, gone = asyncio.Queue[None](), asyncio.Queue[float]()
    begins = False

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reported = (await reader.readuntil(b"\r\n\r\n")).lower()
        if reported.startswith(b"post "):  # the gateway also checks whether the server reports a queue
            await reader.readexactly(int(reported.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            if begins:
                writer.write(HEAD + chunk(event()))
            asked.put_nowait(None)
            with suppress(OSError):
                await reader.read()
            gone.put_nowait(time.perf_counter())
        writer.close()

    async def leave() -> float:
        """A client that disconnects once its request has reached the expert, or its first chunk has arrived."""
        reader, writer = await asyncio.open_connection("127.0.0.1", GATEWAY_PORT)
        fields = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "Write a haiku"}]}
        body = orjson.dumps(fields)
        writer.write(head(len(body)) + body)
        await asked.get()
        if begins:
            await reader.readuntil(b"data: ")
        left = time.perf_counter()
        writer.close()
        return (await asyncio.wait_for(gone.get(), 10) - left) * 1000

    found: dict[str, list[float]] = {}
    async with await asyncio.start_server(wait, "127.0.0.1", WAITING_PORT):
        for phase in ("before_first_piece", "mid_stream"):
            begins = phase == "mid_stream"
            found[phase] = [await leave() for _ in range(count)]
    return found
