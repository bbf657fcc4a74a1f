"""Streaming through the gateway, and memory over large bodies and many requests.

    .venv/bin/python -m benchmarks.streaming [--streams 1000] [--requests 200000] [--json FILE]

`first_byte`: p50 until the first byte at one connection, direct and through the gateway, alternating. `stall`: the
longest pause between two events of any of the streams, of which the upstream sends one a second each, less the same
without the gateway. `disconnect_ms`: from a client's disconnect until its expert's server sees it. `chunk_us`:
processor time of the gateway for an event. `rss_mb`: of the worker after a hundred bodies of 1 MB and a tenth of the
requests, and after all; `many`: how those failed as the client saw it, and ended as the routing log has it. Needs nginx
and wrk."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import uvloop

from benchmarks.client_disconnect import disconnect_delays
from benchmarks.harness import (
    GATEWAY_PORT,
    ROOT,
    STARTER,
    UPSTREAM_PORT,
    gateway,
    head,
    load_script,
    record_counts,
    require,
    rss_mb,
    running,
    upstream,
    wrk,
)
from benchmarks.large_body import cpu, large_body, send

DRIP_PORT = 18096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    require("nginx", "wrk")
    report = streamed(options.home, options.streams) | {"disconnect_ms": disconnect_delays(options.home)}
    report |= plain(options.home, options.requests)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def streamed(home: Path, streams: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = [sys.executable, "-m", "benchmarks.streaming_upstream", str(DRIP_PORT)]
        stack.enter_context(running(command, ready=f"http://127.0.0.1:{DRIP_PORT}/"))
        base = f"http://127.0.0.1:{DRIP_PORT}/v1"
        process, _ = stack.enter_context(gateway(folder, workers=1, home=home, base_url=base))
        first = uvloop.run(first_bytes({"direct": DRIP_PORT, "coe": GATEWAY_PORT}, count=300))
        direct = uvloop.run(many(DRIP_PORT, streams=streams, events=10, gap=1.0))
        through = uvloop.run(many(GATEWAY_PORT, streams=streams, events=10, gap=1.0))
        before = cpu(process)
        uvloop.run(many(GATEWAY_PORT, streams=20, events=1000, gap=0.001))
        spent = cpu(process) - before
    return {
        "first_byte_ms": first | {"added": round(first["coe"] - first["direct"], 3)},
        "stall_ms": {"streams": streams, "direct": direct, "coe": through, "added": round(through - direct, 1)},
        "chunk_us": round(spent / 20_000 * 1e6, 1),
    }


def plain(home: Path, requests: int) -> dict[str, Any]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        base = f"http://127.0.0.1:{UPSTREAM_PORT}/v1"
        process, _ = stack.enter_context(gateway(folder, workers=1, home=home, base_url=base))
        send(GATEWAY_PORT, large_body(), count=100)
        script, memory, done, failures = load_script(folder, STARTER), {}, 0.0, Counter[str]()
        for share in (requests // 10, requests):
            while done < share:
                run = wrk(GATEWAY_PORT, script, connections=32, seconds=5)
                done += run.rps * 5
                failures.update(run.failures)
            memory[str(share)] = rss_mb(process)
        ended = record_counts(folder, "outcome")
    reported = {"requests": round(done), "failed": failures, "outcomes": ended}
    return {"rss_mb": memory, "many": reported}


async def first_bytes(ports: dict[str, int], *, count: int) -> dict[str, float]:
    """Median milliseconds from the request to the first byte of the body, one request at a time, alternating between
    ports."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(count):
        for name, port in ports.items():
            found[name].append((await stream(port, events=1, gap=0.0))[0] * 1e3)
    return {name: round(statistics.median(times), 3) for name, times in found.items()}


async def many(port: int, *, streams: int, events: int, gap: float) -> float:
    """Milliseconds by which the longest pause in any of the streams exceeds `gap`."""

    async def one(index: int) -> Sequence[float]:
        await asyncio.sleep(index / streams * max(gap, 0.5))  # evenly over the gap, as real ones would be
        return await stream(port, events=events, gap=gap)

    found = await asyncio.gather(*(one(index) for index in range(streams)))
    pauses = [later - earlier for times in found for earlier, later in pairwise(times)]
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


if __name__ == "__main__":
    main()
