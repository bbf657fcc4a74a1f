"""Memory of the gateway, and the latency of other clients, while many large bodies or answers arrive at once.

    .venv/bin/python -m benchmarks.hostile_bodies [--bodies 50] [--megabytes 20] [--answers 40] [--seconds 10]
        [--rounds NAME ...] [--home DIR]

`--bodies` clients of one API key each send a body, read the answer, pause for 1 s as `retry-after` says, and send
the next one, for `--seconds`. Meanwhile one client of another key sends short requests at an even pace. The rounds
differ in what the large bodies are:

- `idle`: no large bodies, for comparison
- `objects`: `[{},{},...]`, which costs most memory for its bytes
- `string`: a message of one long string, which is a valid request
- `over_limit`: the same string, from a key whose requests_per_minute are used up

In two more rounds the bodies are short and `--answers` answers without a stream are large:

- `endless`: each answer is JSON without an end
- `unread`: each answer is of 60 MB, and its client reads only the status line in `--seconds`

For each round: `rss_peak_mb` of the gateway's worker, the percentiles of the short requests in ms (counted from when
each was due), and the statuses of the large ones; `reset` counts connections closed before an answer was read. All
servers listen on loopback. Needs nginx.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.harness import ANSWER, GATEWAY_PORT, KEY, ROOT, gateway, head, require, rss_mb, running, upstream
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
ANSWERS = ("endless", "unread")
"""Kinds of large answers; the request has the word."""
UNREAD_BYTES = 60_000_000
ANSWER_RATE = 5e6
"""Bytes a second of a large answer."""
HUGE_PORT = 18088
FLOOD_KEY, OVER_KEY = "sk-flood", "sk-over-limit"
ROUNDS = {"idle": None, "objects": FLOOD_KEY, "string": FLOOD_KEY, "over_limit": OVER_KEY}
ROUNDS |= dict.fromkeys(ANSWERS, FLOOD_KEY)
"""The key of the large requests of each round."""
LIMITS = {KEY: "", FLOOD_KEY: "", OVER_KEY: "requests_per_minute: 1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=50, help="large bodies at once")
    parser.add_argument("--megabytes", type=float, default=20.0, help="size of each")
    parser.add_argument("--answers", type=int, default=40, help="large answers at once")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each round")
    parser.add_argument("--rounds", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flood", nargs=2, metavar=("KIND", "KEY"), help=argparse.SUPPRESS)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.upstream:
        uvloop.run(_answer_hugely())
        return
    if options.flood:
        kind, key = options.flood
        print(json.dumps(uvloop.run(_flood(kind, key, options))))
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
            base = stack.enter_context(_huge_upstream() if name in ANSWERS else reading_upstream(folder))
            served = gateway(folder, workers=1, home=options.home, base_url=f"{base}/v1", keys=_access())
            process, _ = stack.enter_context(served)
            uvloop.run(_short(1.0, KEY))  # warms up
            if key == OVER_KEY:
                uvloop.run(_short(1.0, OVER_KEY))  # uses its limit up
            report[name] = _round(process, "string" if name == "over_limit" else name, key, options)
    return report


def _round(process: psutil.Process, kind: str, key: str | None, options: argparse.Namespace) -> dict[str, Any]:
    flood = None if key is None else _started(kind, key, options)
    peak, over = [0.0], threading.Event()
    sampler = threading.Thread(target=_sample, args=(process, peak, over))
    sampler.start()
    times = uvloop.run(_short(options.seconds, KEY))
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
    names = ("bodies", "megabytes", "answers", "seconds")
    own = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
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
    if kind in ANSWERS:
        return short_body().replace(b"quick brown", kind.encode(), 1)
    head, tail = (b'{"model":"auto","messages":[', b"{}]}")
    if kind == "objects":
        return head + b"{}," * ((size - len(head) - len(tail)) // 3) + tail
    head, tail = b'{"model":"auto","messages":[{"role":"user","content":"', b'"}]}'
    return head + b"long " * ((size - len(head) - len(tail)) // 5) + tail


async def _flood(kind: str, key: str, options: argparse.Namespace) -> dict[str, int]:
    """Counts the large requests by outcome."""
    found: Counter[str] = Counter()
    body = _large(kind, int(options.megabytes * 1e6))
    print("ready", flush=True)
    end = time.perf_counter() + options.seconds

    async def client() -> None:
        while (left := end - time.perf_counter()) > 0:
            found[await _sent(body, key, unread_for=left if kind == "unread" else 0.0)] += 1
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(client() for _ in range(options.answers if kind in ANSWERS else options.bodies)))
    return dict(found)


async def _sent(body: bytes, key: str, *, unread_for: float) -> str:
    """The status of one large request; it is no longer sent once there is an answer. The rest of an answer of status
    200 stays unread for some seconds."""
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
                if unread_for and status[1:2] == [b"200"]:
                    await asyncio.sleep(unread_for)
                return status[1].decode() if len(status) > 1 else "reset"
            finally:
                answer.cancel()
                writer.transport.abort()
    except TimeoutError:
        return "timeout"
    except (OSError, asyncio.IncompleteReadError):
        return "reset"


@contextmanager
def _huge_upstream() -> Iterator[str]:
    """An address that answers in full at once, except for requests with a word of ANSWERS."""
    address = f"http://127.0.0.1:{HUGE_PORT}"
    command = [sys.executable, "-m", "benchmarks.hostile_bodies", "--upstream"]
    with running(command, ready=f"{address}/"):
        yield address


async def _answer_hugely() -> None:
    """Serve `_huge_upstream` until the process ends."""
    texts = {"": ANSWER.encode(), "endless": ANSWER.partition("ok")[0].encode() + b"x" * PIECE}
    texts["unread"] = ANSWER.replace('"ok"', f'"{"x" * UNREAD_BYTES}"').encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, RuntimeError, asyncio.IncompleteReadError):  # RuntimeError: uvloop, once it is closed
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
                body = await reader.readexactly(lengths[0] if lengths else 0)
                await answer(writer, next((kind for kind in ANSWERS if kind.encode() in body), ""))

    async def answer(writer: asyncio.StreamWriter, kind: str) -> None:
        text = texts[kind]
        length = "connection: close" if kind == "endless" else f"content-length: {len(text)}"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode())
        at = 0
        while at < len(text):
            writer.write(text[at : at + PIECE])
            await writer.drain()
            at += 0 if kind == "endless" else PIECE
            await asyncio.sleep(PIECE / ANSWER_RATE if kind else 0)

    async with await asyncio.start_server(serve, "127.0.0.1", HUGE_PORT) as server:
        await server.serve_forever()


async def _short(seconds: float, key: str) -> list[float]:
    """Milliseconds from when each short request was due to its answer; each on a connection of its own."""
    body, times = short_body(), list[float]()
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
