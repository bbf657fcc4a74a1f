"""What a request of 1 MB costs the gateway, beside a short one and beside a bare pass-through.

    .venv/bin/python -m benchmarks.large_body [--rounds 5] [--count 100] [--home DIR] [--json FILE]

The upstream answers once it has read a request, as servers of models do. `cpu_ms`: processor time of the server's
processes, reading and sending included, medians of rounds in turn. `parses`: that of the large request in parses of its
body, by orjson, with which the gateway parses, and by the standard library. `routing_parses`: what the megabyte costs
the gateway, less what it costs the pass-through, by orjson. Needs nginx.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks.rig import (
    GATEWAY_PORT,
    KEY,
    PASSTHROUGH_PORT,
    ROOT,
    UPSTREAM_PORT,
    gateway,
    require,
    running,
    upstream,
)

READING_PORT = 18089
WORDS = "the quick brown fox jumps over the lazy dog and tells a long story about it "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    require("nginx")
    report = measured(options.home, rounds=options.rounds, count=options.count)
    print(json.dumps(report, indent=2))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def measured(home: Path, *, rounds: int, count: int) -> dict[str, Any]:
    bodies = {"short": short_body(), "large": large_body()}
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        base = stack.enter_context(reading_upstream(folder))
        command = [sys.executable, "-m", "benchmarks.passthrough", base, str(PASSTHROUGH_PORT)]
        bare = stack.enter_context(running(command, ready=f"http://127.0.0.1:{PASSTHROUGH_PORT}/"))
        coe, _ = stack.enter_context(gateway(folder, workers=1, home=home, base_url=f"{base}/v1"))
        servers = {"coe": (GATEWAY_PORT, coe), "passthrough": (PASSTHROUGH_PORT, bare)}
        for _ in range(rounds + 1):
            for name, (port, server) in servers.items():
                for size, body in bodies.items():
                    before = cpu(server)
                    ask(port, body, count=count)
                    found.setdefault((name, size), []).append((cpu(server) - before) / count * 1e3)
    cost = {pair: statistics.median(times[1:]) for pair, times in found.items()}  # the first warms up
    parse = {"orjson": best_of(orjson.loads, bodies["large"]), "json": best_of(json.loads, bodies["large"])}
    own, bare_own = (cost[name, "large"] - cost[name, "short"] for name in ("coe", "passthrough"))
    return {
        "megabytes": round(len(bodies["large"]) / 1e6, 2),
        "parse_ms": {name: round(ms, 3) for name, ms in parse.items()},
        "cpu_ms": {f"{name}_{size}": round(ms, 3) for (name, size), ms in cost.items()},
        "parses": {name: round(cost["coe", "large"] / ms, 2) for name, ms in parse.items()},
        "routing_parses": round((own - bare_own) / parse["orjson"], 2),
    }


def short_body() -> bytes:
    return orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": WORDS}]})


def large_body() -> bytes:
    """About 1 MB: a conversation of many turns with a long document in it."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": WORDS * 20} for i in range(301)]
    return orjson.dumps({"model": "auto", "messages": [*turns, {"role": "user", "content": WORDS * 7000}]})


def ask(port: int, body: bytes, *, count: int) -> None:
    """So often, over one connection."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        for _ in range(count):
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status


@contextmanager
def reading_upstream(folder: Path) -> Iterator[str]:
    """An address that answers as `upstream` does, which has to run, but not before it has read the whole request."""
    conf = folder / "reading.conf"
    conf.write_text(
        f"""
        daemon off; worker_processes 1; pid {folder}/reading.pid; error_log stderr;
        events {{ worker_connections 4096; }}
        http {{
          access_log off; client_body_temp_path {folder}/reading; client_max_body_size 64m;
          client_body_buffer_size 4m; keepalive_requests 1000000000;
          server {{
            listen 127.0.0.1:{READING_PORT};
            location / {{
              proxy_pass http://127.0.0.1:{UPSTREAM_PORT}; proxy_pass_request_body off;
              proxy_set_header content-length "";
            }}
          }}
        }}"""
    )
    address = f"http://127.0.0.1:{READING_PORT}"
    command = ["nginx", "-p", str(folder), "-c", str(conf)]
    with running(command, ready=f"{address}/", output=subprocess.DEVNULL):
        yield address


def cpu(server: psutil.Process) -> float:
    """Seconds of processor time so far, its workers' included."""
    times = [process.cpu_times() for process in (server, *server.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def best_of(parse: Callable[[bytes], object], body: bytes, times: int = 30) -> float:
    """Milliseconds."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        parse(body)
        found.append(time.perf_counter() - began)
    return min(found) * 1e3


if __name__ == "__main__":
    main()
