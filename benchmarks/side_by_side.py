"""Compare the gateways of several checkouts: requests per second, median latency and processor time of a request.

    .venv/bin/python -m benchmarks.side_by_side NAME=CHECKOUT:STATE [NAME=CHECKOUT:STATE ...]
        [--pairs 12] [--seconds 2] [--workers 1] [--prompts FILE] [--turns 1]

CHECKOUT is a folder with the code (a git worktree), STATE a state folder with a router that this code can load. All
gateways and a bare pass-through are alive at once and are loaded in turn, since the machine's speed drifts by more than
most changes gain. Ratios are to the first checkout, paired by round. The processor time is that of all processes of a
gateway, its log's thread included; without nginx and wrk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

import psutil

from benchmarks.harness import (
    GATEWAY_PORT,
    PASSTHROUGH_PORT,
    STARTER,
    UPSTREAM,
    chats,
    gateway,
    load_script,
    passthrough,
    processor_seconds,
    read_prompts,
    require,
    upstream,
    wrk,
)

PAUSE_SECONDS = 1.0
"""Time for the records of a burst to be written: their processor time counts, and the next burst is not disturbed."""


def main() -> None:
    options = _options()
    require("nginx", "wrk")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        script = load_script(folder, chats(read_prompts(options.prompts), turns=options.turns))
        servers = {"passthrough": (PASSTHROUGH_PORT, stack.enter_context(passthrough()))}
        for number, (name, code, home) in enumerate(options.checkouts):
            own, port = folder / name, GATEWAY_PORT + 10 + number
            own.mkdir()
            base_url = f"{UPSTREAM}/v1"
            served = gateway(own, workers=options.workers, home=home, base_url=base_url, port=port, checkout=code)
            servers[name] = (port, stack.enter_context(served)[0])
        for port, _ in servers.values():
            wrk(port, script, connections=8, seconds=2)  # warm up
        rounds = [
            {name: _bursts(*server, script, options.seconds) for name, server in servers.items()}
            for _ in range(options.pairs)
        ]
    first = options.checkouts[0][0]
    for name in servers:
        for figure in ("rps", "cpu_us", "p50_ms"):
            values = [found[name][figure] for found in rounds]
            ratios = [found[name][figure] / found[first][figure] for found in rounds]
            low, middle, high = quantiles(ratios, n=4)
            print(
                f"{name:12} {figure:6} {median(values):10.4g}  ratio {middle:.3f} (quartiles {low:.3f} to {high:.3f})"
            )


def _bursts(port: int, process: psutil.Process, script: Path, seconds: int) -> dict[str, float]:
    """Load one server at 32 connections, then at one, of which the median latency counts."""
    before = processor_seconds(process)
    load = wrk(port, script, connections=32, seconds=seconds)
    time.sleep(PAUSE_SECONDS)
    cpu_us = 1e6 * (processor_seconds(process) - before) / (load.rps * seconds)
    one = wrk(port, script, connections=1, seconds=max(1, seconds // 2))
    return {"rps": load.rps, "cpu_us": cpu_us, "p50_ms": one.p50}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", type=checkout, metavar="NAME=CHECKOUT:STATE")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--prompts", type=Path, default=STARTER)
    parser.add_argument("--turns", type=int, default=1, help="turns of the user in each chat")
    return parser.parse_args()


def checkout(value: str) -> tuple[str, Path, Path]:
    """Parse NAME=CHECKOUT:STATE."""
    name, _, folders = value.partition("=")
    code, _, home = folders.partition(":")
    if not (name and code and home):
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=CHECKOUT:STATE")
    return name, Path(code).resolve(), Path(home).resolve()


if __name__ == "__main__":
    main()
