"""Memory of the gateway, and the latency of other clients, while many large bodies arrive at once; and their rate.

    .venv/bin/python -m benchmarks.hostile_bodies [ROUND ...] [--bodies 50] [--megabytes 20] [--seconds 10] [--home DIR]

`--bodies` clients of one API key each send a body, read the answer, pause for 1 s as `retry-after` says, and send
the next one, for `--seconds`. Meanwhile one client of another key sends short requests at an even pace. The rounds
differ in what the large bodies are:

- `idle`: no large bodies, for comparison
- `objects`: `[{},{},...]`, which costs most memory for its bytes
- `string`: a message of one long string, which is a valid request
- `over_limit`: the same string, from a key whose requests_per_minute are used up
- `unknown_model`: bodies of 66 kB without a pause, on 100 connections that stay open, refused after their parse; in
  this round and in `idle_100kb`, which has no flood, the requests of the other key have 100 kB

For each of them: `rss_peak_mb` of the gateway's worker, the percentiles of the short requests in ms (counted from when
each was due), and the statuses of the large ones; `reset` counts connections closed before an answer was read. All
servers listen on loopback. Needs nginx.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.harness import GATEWAY_PORT, KEY, ROOT, gateway, head, require, rss_mb, upstream
from benchmarks.large_body import reading_upstream, short_body

PACE = 0.02
"""Seconds between two short requests."""
PAUSE = 1.0
"""Seconds between two bodies of one client, as Retry-After requests."""
SAMPLE = 0.01
"""Seconds between two samples of the memory."""
PIECE = 2**18
"""Bytes of a body written at a time."""
ANSWER_TIMEOUT = 30.0
FLOOD_CONNECTIONS, FLOOD_BYTES = 100, 66_000
RATE_CONNECTIONS, RATE_BYTES, RATE_ROUNDS = 32, (60_000, 100_000), 9
CODE = rb"def line(self, name: str = \"a\") -> dict[str, int]:\n    return {name: 1, \"b\": 2}\n\n"
RATES = {
    "answered": ("auto", b"long "),
    "answered_code": ("auto", CODE),
    "refused": ("nobody", b"long "),
    "refused_code": ("nobody", CODE),
}
"""The model and the text of the requests."""
FLOOD_KEY, OVER_KEY = "sk-flood", "sk-over-limit"
LIMITS = {KEY: "", FLOOD_KEY: "", OVER_KEY: "requests_per_minute: 1"}


ROUNDS = {
    "idle": None,
    "objects": FLOOD_KEY,
    "string": FLOOD_KEY,
    "over_limit": OVER_KEY,
    "idle_100kb": None,
    "unknown_model": FLOOD_KEY,
    "rates": None,
}
"""The key of the flood in each round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="*", metavar="ROUND", default=list(ROUNDS), help="default: all")
    parser.add_argument("--bodies", type=int, default=50, help="large bodies at once")
    parser.add_argument("--megabytes", type=float, default=20.0, help="size of each")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each round")
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flood", nargs=2, metavar=("KIND", "KEY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = int(options.megabytes * 1e6)
    if options.flood:
        kind, key = options.flood
        if kind == "unknown_model":
            body = _string(FLOOD_BYTES, model="nobody")
            sent = _repeat(body, key, connections=FLOOD_CONNECTIONS, seconds=options.seconds)
        else:
            sent = _flood(_large(kind, size), key, count=options.bodies, seconds=options.seconds)
        print("ready", flush=True)
        print(json.dumps(uvloop.run(sent)))
        return
    require("nginx")
    report = _measured(options)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    report = {}
    for name in options.rounds:  # each with a gateway of its own, whose memory nothing has used before
        key = ROUNDS[name]
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            folder.chmod(0o755)  # nginx's worker, which may be another user, buffers large bodies there
            stack.enter_context(upstream(folder))
            base = stack.enter_context(reading_upstream(folder))
            served = gateway(folder, workers=1, home=options.home, base_url=f"{base}/v1", keys=_access())
            process, _ = stack.enter_context(served)
            uvloop.run(_short(1.0, KEY))  # warms up
            if key == OVER_KEY:
                uvloop.run(_short(1.0, OVER_KEY))  # uses its limit up
            report[name] = _rates(options.seconds) if name == "rates" else _round(process, name, key, options)
    return report


def _rates(seconds: float) -> dict[str, float]:
    rates: dict[str, float] = {}
    for name, (model, text) in RATES.items():
        found: dict[int, list[float]] = {size: [] for size in RATE_BYTES}
        for _ in range(RATE_ROUNDS):
            for size, counts in found.items():
                sent = _repeat(
                    _string(size, model=model, text=text),
                    KEY,
                    connections=RATE_CONNECTIONS,
                    seconds=seconds / RATE_ROUNDS,
                )
                counts.append(sum(uvloop.run(sent).values()) * RATE_ROUNDS / seconds)
        small, large = (statistics.median(counts) for counts in found.values())
        rates |= {f"{name}_60kb": round(small), f"{name}_100kb": round(large)}
        rates[f"{name}_proportion"] = round(large * RATE_BYTES[1] / (small * RATE_BYTES[0]), 2)
    return rates


def _round(process: psutil.Process, kind: str, key: str | None, options: argparse.Namespace) -> dict[str, Any]:
    flood = None if key is None else _started(kind, key, options)
    body = _string(RATE_BYTES[1]) if kind in ("idle_100kb", "unknown_model") else short_body()
    peak, over = [0.0], threading.Event()
    sampler = threading.Thread(target=_sample, args=(process, peak, over))
    sampler.start()
    times = uvloop.run(_short(options.seconds, KEY, body))
    reported: dict[str, int] = {} if flood is None else json.loads(flood.communicate()[0])
    over.set()
    sampler.join()
    cuts = statistics.quantiles(times, n=100)
    return {
        "rss_peak_mb": peak[0],
        "p50_ms": round(cuts[49], 1),
        "p99_ms": round(cuts[98], 1),
        "max_ms": round(max(times), 1),
        "short_requests": len(times),
        "large_requests": reported,
    }


def _started(kind: str, key: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """The flood, in a process of its own, once it has built its body."""
    own = ["--bodies", str(options.bodies), "--megabytes", str(options.megabytes), "--seconds", str(options.seconds)]
    command = [sys.executable, "-m", "benchmarks.hostile_bodies", *own, "--flood", kind, key]
    flood = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert flood.stdout is not None
    flood.stdout.readline()
    return flood


def _sample(process: psutil.Process, peak: list[float], over: threading.Event) -> None:
    while not over.wait(SAMPLE):
        peak[0] = max(peak[0], rss_mb(process))


def _access() -> str:
    entries = "".join(
        f"    - name: {name.removeprefix('sk-')}\n"
        f"      sha256: {hashlib.sha256(name.encode()).hexdigest()}\n"
        f"      limits: {{{limits}}}\n"
        for name, limits in LIMITS.items()
    )
    return f"access:\n  keys:\n{entries}"


def _large(kind: str, size: int) -> bytes:
    head, tail = (b'{"model":"auto","messages":[', b"{}]}")
    if kind == "objects":
        return head + b"{}," * ((size - len(head) - len(tail)) // 3) + tail
    return _string(size)


def _string(size: int, *, model: str = "auto", text: bytes = b"long ") -> bytes:
    """A request with one message, which repeats the text."""
    head, tail = b'{"model":"%b","messages":[{"role":"user","content":"' % model.encode(), b'"}]}'
    return head + text * ((size - len(head) - len(tail)) // len(text)) + tail


async def _repeat(body: bytes, key: str, *, connections: int, seconds: float) -> dict[str, int]:
    """Counts the answers by status. Each connection sends its next request as soon as it has an answer."""
    found: Counter[str] = Counter()
    request = head(len(body), key) + body
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", GATEWAY_PORT)
        while time.perf_counter() < end:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"content-length: (\d+)", answer)
            await reader.readexactly(int(length))
            found[answer.split(b" ", 2)[1].decode()] += 1
        writer.transport.abort()

    await asyncio.gather(*(client() for _ in range(connections)))
    return dict(found)


async def _flood(body: bytes, key: str, *, count: int, seconds: float) -> dict[str, int]:
    """Counts the large requests by outcome."""
    found: Counter[str] = Counter()
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            found[await _sent(body, key)] += 1
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(client() for _ in range(count)))
    return dict(found)


async def _sent(body: bytes, key: str) -> str:
    """The status of one large request; it is no longer sent once there is an answer."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", GATEWAY_PORT)
            answer = asyncio.ensure_future(reader.readline())
            try:
                writer.write(head(len(body), key))
                whole = memoryview(body)
                for at in range(0, len(body), PIECE):
                    if answer.done():
                        break
                    writer.write(whole[at : at + PIECE])
                    await writer.drain()
                status = (await answer).split(b" ")
                return status[1].decode() if len(status) > 1 else "reset"
            finally:
                answer.cancel()
                writer.transport.abort()
    except (OSError, asyncio.IncompleteReadError):
        return "reset"
    except TimeoutError:
        return "timeout"


async def _short(seconds: float, key: str, body: bytes = short_body()) -> list[float]:
    """Milliseconds from when each request was due to its answer; each on a connection of its own."""
    times = list[float]()
    request = head(len(body), key) + body

    async def one(due: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", GATEWAY_PORT)
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        times.append(1000 * (time.perf_counter() - due))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds / PACE)):
            due = start + number * PACE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due))
    return times


if __name__ == "__main__":
    main()
