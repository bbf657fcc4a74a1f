"""Gateway overhead: latency at one connection, requests per second at 32, against a bare pass-through and other
gateways.

    .venv/bin/python -m benchmarks.gateway [--rounds 3] [--seconds 5] [--workers 1] [--prompts FILE] [--json FILE]
        [--peers litellm,portkey,vllm-router,ferro] [--peer-bin NAME=PATH ...]

Needs nginx (the upstream, a fixed answer at C speed) and wrk (the load) on PATH (`apt-get install nginx-light wrk
redis-server`); a router is trained where `--home` has none. All targets alternate in every round, because the
machine's speed drifts; medians are reported. The bare pass-through runs on Granian, as in older figures, and once more
on the gateway's own server (`passthrough-own`). wrk corrects for coordinated omission; `p99_ms_in_turn` is of a client
that sends the next request after each response.

In the gateway, routing, a declared key with its limits, metrics and the routing log (SQLite) are on; several workers
share the key's limits through Redis. Prompts rotate over the starter prompts, which the router has learned, or over
FILE (JSONL, field prompt): of fresh ones a third goes through the sentence encoder. An eighth of the starter
prompts is not English and takes a pass of the multilingual encoder (23 ms of one core): give FILE to leave them out.

Peers are looked for on PATH, beside this Python, and where `--peer-bin` says; one that is not there, or does not start,
is left out. Each has its own packages, best apart from the project's:

    python3 -m venv /opt/peers/litellm && /opt/peers/litellm/bin/pip install 'litellm[proxy]!=1.82.7,!=1.82.8'
    python3 -m venv /opt/peers/vllm && /opt/peers/vllm/bin/pip install vllm-router
    python3 -m venv /opt/peers/ferro && /opt/peers/ferro/bin/pip install ferrogw
    npm install --prefix /opt/peers/portkey @portkey-ai/gateway
    .venv/bin/python -m benchmarks.gateway --peers litellm,portkey,vllm-router,ferro --json FILE \\
        --peer-bin litellm=/opt/peers/litellm/bin/litellm --peer-bin vllm-router=/opt/peers/vllm/bin/vllm-router \\
        --peer-bin portkey=/opt/peers/portkey/node_modules/.bin/gateway \\
        --peer-bin ferro=/opt/peers/ferro/bin/ferrogw
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import psutil

from benchmarks import peers
from benchmarks.harness import (
    BODIES,
    GATEWAY_PORT,
    KEY,
    PASSTHROUGH_PORT,
    ROOT,
    STARTER,
    UPSTREAM_PORT,
    NothingAnswers,
    gateway,
    in_turn,
    load_script,
    median,
    require,
    rss_mb,
    running,
    upstream,
    wrk,
)

UPSTREAM = f"http://127.0.0.1:{UPSTREAM_PORT}"


@dataclass(frozen=True, slots=True)
class Target:
    port: int
    script: Path
    process: psutil.Process | None
    headers: Mapping[str, str] = field(default_factory=dict)


def main() -> None:
    options = _options()
    require("nginx", "wrk")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        targets, ready = _targets(stack, folder, options)
        bodies = (folder / BODIES).read_bytes().splitlines()
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for target in targets.values():
            wrk(target.port, target.script, connections=8, seconds=2)  # warm up
        for _ in range(options.rounds):
            for name, target in targets.items():
                one = wrk(target.port, target.script, connections=1, seconds=options.seconds)
                many = wrk(target.port, target.script, connections=32, seconds=options.seconds)
                turns = in_turn(target.port, bodies, target.headers, seconds=options.seconds)
                figures = {"p50_ms_c1": one.p50, "p99_ms_c1": one.p99, "p99_ms_in_turn": quantiles(turns, n=100)[98]}
                figures["rps_c32"] = many.rps
                rounds[name].append(figures | {"failed": one.failed + many.failed})
        result = {name: {key: median(found, key) for key in found[0]} for name, found in rounds.items()}
        for name, target in targets.items():
            if target.process is not None:
                result[name]["rss_mb"] = rss_mb(target.process)
        result["coe"] |= {"ready_s": round(ready, 2), "workers": options.workers}
    for name, found in result.items():
        if name != "direct":
            for key in ("p50_ms_c1", "p99_ms_c1", "p99_ms_in_turn"):
                found[f"added_{key}"] = round(found[key] - result["direct"][key], 3)
        print(name, "  ".join(f"{key}={value:g}" for key, value in found.items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--prompts", type=Path, default=STARTER)
    parser.add_argument("--peers", type=lambda value: value.split(","), default=[])
    parser.add_argument("--peer-bin", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.peers) - set(peers.COMMANDS):
        parser.error(f"unknown peers {', '.join(unknown)}; known: {', '.join(peers.COMMANDS)}")
    return options


def _targets(stack: ExitStack, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Target], float]:
    """All of them, started, and the seconds until the gateway was ready."""
    script = load_script(folder, options.prompts)
    command = [sys.executable, "-m", "benchmarks.passthrough", UPSTREAM, str(PASSTHROUGH_PORT)]
    bare = stack.enter_context(running(command, ready=f"http://127.0.0.1:{PASSTHROUGH_PORT}/"))
    own_port = PASSTHROUGH_PORT + 1
    command = [sys.executable, "-m", "benchmarks.passthrough", UPSTREAM, str(own_port), "own"]
    own = stack.enter_context(running(command, ready=f"http://127.0.0.1:{own_port}/"))
    coe, ready = stack.enter_context(
        gateway(folder, workers=options.workers, home=options.home, base_url=f"{UPSTREAM}/v1")
    )
    targets = {
        "direct": Target(UPSTREAM_PORT, script, None),
        "passthrough": Target(PASSTHROUGH_PORT, script, bare),
        "passthrough-own": Target(own_port, script, own),
        "coe": Target(GATEWAY_PORT, script, coe),
    }
    given = dict(pair.split("=", 1) for pair in options.peer_bin)
    for name in options.peers:
        if (program := peers.find(name, given)) is None:
            print(f"{name} is not there and is left out; how to install it: --help", file=sys.stderr)
            continue
        other = peers.peer(name, program, upstream=UPSTREAM, key=KEY, folder=folder)
        try:
            process = stack.enter_context(
                running(other.command, ready=other.ready, env=other.env, output=subprocess.DEVNULL)
            )
        except NothingAnswers as silent:
            print(f"{name} does not start and is left out: {' '.join(other.command)}: {silent}", file=sys.stderr)
            continue
        script = load_script(folder, options.prompts, other.headers)
        targets[name] = Target(peers.PORTS[name], script, process, other.headers)
    return targets, ready


if __name__ == "__main__":
    main()
