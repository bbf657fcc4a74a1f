"""Streaming through the gateway: the first byte, pauses between events, the cost of an event, and disconnects.

    .venv/bin/python -m benchmarks.streaming [--streams 1000] [--json FILE]

`first_byte_ms`: p50 until the first byte at one connection, direct and through the gateway, alternating. `stall_ms`:
the longest pause between two events of any of the streams, of which the upstream sends one a second each, less the same
without the gateway. `chunk_us`: processor time of the gateway for an event. `disconnect_ms`: from a client's disconnect
until its expert's server sees it, before the first piece of an answer and in mid-stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.harness import GATEWAY_PORT, ROOT, gateway, head, processor_seconds, running

UPSTREAM_PORT, WAITING_PORT = 18096, 18098
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve_upstream())
        return
    report = streamed(options.home, options.streams) | {"disconnect_ms": disconnect_delays(options.home)}
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def streamed(home: Path, streams: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, "-m", "benchmarks.streaming", "--serve"]
        stack.enter_context(running(command, ready=f"http://127.0.0.1:{UPSTREAM_PORT}/"))
        base = f"http://127.0.0.1:{UPSTREAM_PORT}/v1"
        process, _ = stack.enter_context(gateway(folder, workers=1, home=home, base_url=base))
        first = uvloop.run(first_bytes({"direct": UPSTREAM_PORT, "coe": GATEWAY_PORT}, count=300))
        direct = uvloop.run(longest_stall(UPSTREAM_PORT, streams=streams, events=10, gap=1.0))
        through = uvloop.run(longest_stall(GATEWAY_PORT, streams=streams, events=10, gap=1.0))
        before = processor_seconds(process)
        uvloop.run(longest_stall(GATEWAY_PORT, streams=20, events=1000, gap=0.001))
        spent = processor_seconds(process) - before
    return {
        "first_byte_ms": first | {"added": round(first["coe"] - first["direct"], 3)},
        "stall_ms": {"streams": streams, "direct": direct, "coe": through, "added": round(through - direct, 1)},
        "chunk_us": round(spent / 20_000 * 1e6, 1),
    }


async def first_bytes(ports: dict[str, int], *, count: int) -> dict[str, float]:
    """Median milliseconds from the request to the first byte of the body, one request at a time, the ports in turn."""
    times: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(count):
        for name, port in ports.items():
            times[name].append((await stream(port, events=1, gap=0.0))[0] * 1e3)
    return {name: round(statistics.median(each), 3) for name, each in times.items()}


async def longest_stall(port: int, *, streams: int, events: int, gap: float) -> float:
    """Milliseconds by which the longest pause in any of the streams exceeds `gap`."""

    async def one(index: int) -> Sequence[float]:
        await asyncio.sleep(index / streams * max(gap, 0.5))  # evenly over the gap, as real ones would be
        return await stream(port, events=events, gap=gap)

    arrivals = await asyncio.gather(*(one(index) for index in range(streams)))
    pauses = [later - earlier for times in arrivals for earlier, later in pairwise(times)]
    return round((max(pauses) - gap) * 1e3, 1)


async def stream(port: int, *, events: int, gap: float) -> list[float]:
    """Arrival times of the chunks of one stream, in seconds since the request."""
    fields = {"model": "auto", "stream": True, "max_tokens": events, "top_p": gap}
    body = orjson.dumps(fields | {"messages": [{"role": "user", "content": "Write a python function that sorts"}]})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(head(len(body)) + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200"), answer
    times, seen = [], b""
    while b"[DONE]" not in seen:
        chunk = await reader.read(2**16)
        assert chunk, seen
        times.append(time.perf_counter() - began)
        seen = seen[-16:] + chunk
    writer.close()
    return times


def event() -> bytes:
    """One piece of an answer, as large as vLLM's."""
    fields = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choice = {"index": 0, "delta": {"content": f"{time.perf_counter():.6f} "}, "finish_reason": None}
    return b"data: %b\n\n" % orjson.dumps(fields | {"choices": [choice]})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The fields of a request's body; empty without one."""
    headers = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(headers.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
    return dict(orjson.loads(await reader.readexactly(length))) if length else {}


async def serve_upstream() -> None:
    """Stream `max_tokens` events to each request, one every `top_p` seconds. They are almost free."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                fields = await read_request(reader)
                if not fields.get("stream"):
                    writer.write(PLAIN)
                    continue
                writer.write(HEAD)
                for _ in range(fields["max_tokens"]):
                    writer.write(chunk(event()))
                    await asyncio.sleep(fields["top_p"])
                writer.write(chunk(END) + b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", UPSTREAM_PORT, limit=2**26, backlog=4096)
    await server.serve_forever()


def disconnect_delays(home: Path, *, count: int = 100) -> dict[str, Any]:
    """Median and maximum milliseconds from the client's close to the end of the server's connection."""
    with tempfile.TemporaryDirectory() as folder:
        base = f"http://127.0.0.1:{WAITING_PORT}/v1"
        with gateway(Path(folder), workers=1, home=home, base_url=base):
            delays = uvloop.run(_disconnect(count))
    return {
        phase: {"p50": round(statistics.median(times), 2), "longest": round(max(times), 2)}
        for phase, times in delays.items()
    }


async def _disconnect(count: int) -> dict[str, list[float]]:
    asked, gone = asyncio.Queue[None](), asyncio.Queue[float]()
    begins = False

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await read_request(reader):  # the gateway's health checks have no body
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

    delays: dict[str, list[float]] = {}
    async with await asyncio.start_server(wait, "127.0.0.1", WAITING_PORT):
        for phase in ("before_first_piece", "mid_stream"):
            begins = phase == "mid_stream"
            delays[phase] = [await leave() for _ in range(count)]
    return delays


if __name__ == "__main__":
    main()
