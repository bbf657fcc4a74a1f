"""The answer cache: time of hits and misses in memory and in Redis, beside a gateway without a cache.

    .venv/bin/python -m benchmarks.answer_cache [--rounds 3] [--seconds 4] [--stores none,memory,redis] [--home STATE]
        [--json FILE]

Needs nginx (the upstream, a fixed answer) and redis-server. One client sends the next request after each answer. The
gateways run one after another, as often as there are rounds, because the machine's speed drifts; medians are reported.
`cpu_us` is the processor time of the gateway for each request, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles

import psutil

from benchmarks.harness import (
    ACCESS,
    BODIES,
    GATEWAY_PORT,
    KEY,
    REDIS_PORT,
    ROOT,
    STARTER,
    UPSTREAM_PORT,
    gateway,
    load_script,
    redis,
    require,
    upstream,
)

SECTIONS = {
    "none": "",
    "memory": "cache: {when: always}\n",
    "redis": f"cache: {{when: always, store: 'redis://127.0.0.1:{REDIS_PORT}/0'}}\n",
}
REPEATED = 50
"""Different requests that are sent again and again for hits."""


def main() -> None:
    options = _options()
    require("nginx", "redis-server")
    rounds: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name, upstream(Path(name)), redis():
        load_script(Path(name), STARTER)
        bodies = (Path(name) / BODIES).read_bytes().splitlines()
        for number in range(options.rounds):
            for store in options.stores:
                folder = Path(name) / f"{store}-{number}"
                folder.mkdir()
                where = {"workers": 1, "home": options.home, "base_url": f"http://127.0.0.1:{UPSTREAM_PORT}/v1"}
                with gateway(folder, keys=ACCESS + SECTIONS[store], **where) as (process, _):
                    kinds = ["unlike"] if store == "none" else ["unlike", "repeated"]
                    for kind in kinds:
                        found = _measured(process, bodies, kind, seed=number, seconds=options.seconds)
                        rounds.setdefault(f"{store} {kind}", []).append(found)
    result = {
        name: {key: round(median(one[key] for one in found), 3) for key in found[0]} for name, found in rounds.items()
    }
    for name, figures in result.items():
        print(f"{name:18}", "  ".join(f"{key}={value:g}" for key, value in figures.items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--stores", type=lambda value: value.split(","), default=list(SECTIONS))
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _measured(
    process: psutil.Process, bodies: Sequence[bytes], kind: str, *, seed: int, seconds: float
) -> dict[str, float]:
    """Percentiles in ms, processor time for each request in µs, and the share of hits."""
    requests = _repeated(bodies) if kind == "repeated" else _unlike(bodies, seed)
    _times(requests, seconds=1)  # warm up, and fill the cache
    before = _cpu(process)
    times, hits = _times(requests, seconds=seconds)
    spent = _cpu(process) - before
    cuts = quantiles(times, n=100)
    return {
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "cpu_us": 1e6 * spent / len(times),
        "hits": hits / len(times),
        "requests": len(times),
    }


def _cpu(process: psutil.Process) -> float:
    """Processor seconds of the gateway and its workers."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def _unlike(bodies: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Requests that never repeat."""
    number = seed * 10**6
    while True:
        for body in bodies:
            number += 1
            yield body[:-4] + b" %d" % number + body[-4:]


def _repeated(bodies: Sequence[bytes]) -> Iterator[bytes]:
    while True:
        yield from bodies[:REPEATED]


def _times(requests: Iterator[bytes], *, seconds: float) -> tuple[list[float], int]:
    """The time of each request in ms, and how many were hits."""
    sent = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    times: list[float] = []
    hits = 0
    with closing(http.client.HTTPConnection("127.0.0.1", GATEWAY_PORT, timeout=60)) as connection:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            body = next(requests)
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body, sent)
            response = connection.getresponse()
            response.read()
            times.append(1000 * (time.perf_counter() - began))
            assert response.status == 200, response.status
            hits += response.getheader("x-coe-cache") == "hit"
    return times, hits


if __name__ == "__main__":
    main()
