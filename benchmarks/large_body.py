"""CPU time of a request of 1 MB, against a short one and against a bare pass-through.

    .venv/bin/python -m benchmarks.large_body [--rounds 7] [--count 200] [--home DIR] [--json FILE]

The upstream answers once it has read a request, as servers of models do. `cpu_ms`: processor time of the server's
processes, reading and sending included; `parse_ms`: a bare parse of the body by orjson, with which the gateway parses,
and by the standard library. `parses`: the large request in such parses. `added_parses`: the same of what the megabyte
costs the gateway (more than a short request does) less what it costs the pass-through. All are medians of rounds in
turn, the machine's speed being what it is in each. Needs nginx.
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil

from benchmarks.harness import (
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
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=200)
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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        base = stack.enter_context(reading_upstream(folder))
        command = [sys.executable, "-m", "benchmarks.passthrough", base, str(PASSTHROUGH_PORT)]
        bare = stack.enter_context(running(command, ready=f"http://127.0.0.1:{PASSTHROUGH_PORT}/"))
        coe, _ = stack.enter_context(gateway(folder, workers=1, home=home, base_url=f"{base}/v1"))
        servers = {"coe": (GATEWAY_PORT, coe), "passthrough": (PASSTHROUGH_PORT, bare)}
        found = [_round(servers, bodies, count=count) for _ in range(rounds + 1)]
    reported = {name: round(statistics.median(one[name] for one in found[1:]), 3) for name in found[0]}  # one warms up
    return {"megabytes": round(len(bodies["large"]) / 1e6, 2), **reported}


def _round(
    servers: Mapping[str, tuple[int, psutil.Process]], bodies: Mapping[str, bytes], *, count: int
) -> dict[str, float]:
    cost: dict[str, float] = {}
    for name, (port, server) in servers.items():
        for size, body in bodies.items():
            before = cpu(server)
            send(port, body, count=count)
            cost[f"cpu_ms_{name}_{size}"] = (cpu(server) - before) / count * 1e3
    parsers = {"orjson": orjson.loads, "json": json.loads}
    parse = {f"parse_ms_{name}": typical(parser, bodies["large"]) for name, parser in parsers.items()}
    own, bare = (cost[f"cpu_ms_{name}_large"] - cost[f"cpu_ms_{name}_short"] for name in servers)
    parses = {f"parses_{name}": cost["cpu_ms_coe_large"] / parse[f"parse_ms_{name}"] for name in parsers}
    added = {f"added_parses_{name}": (own - bare) / parse[f"parse_ms_{name}"] for name in parsers}
    return cost | parse | parses | added


def short_body() -> bytes:
    return orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": WORDS}]})


def large_body() -> bytes:
    """About 1 MB: a conversation of many turns with a long document in it."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": WORDS * 20} for i in range(301)]
    return orjson.dumps({"model": "auto", "messages": [*turns, {"role": "user", "content": WORDS * 7000}]})


def send(port: int, body: bytes, *, count: int) -> None:
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


def typical(parse: Callable[[bytes], object], body: bytes, times: int = 100) -> float:
    """Milliseconds, the median."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        parse(body)
        found.append(time.perf_counter() - began)
    return statistics.median(found) * 1e3


if __name__ == "__main__":
    main()
