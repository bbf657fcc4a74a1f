"""What the gateway adds: latency at one connection and requests per second at 32, against a static upstream.

    .venv/bin/python benchmarks/gateway.py [--rounds 3] [--seconds 5] [--workers 1] [--json FILE]

Needs nginx (the upstream, a fixed answer at C speed) and wrk (the load) on PATH, and a trained router (`make serve` or
`coe train` once). Direct and gateway alternate in every round, since the machine's speed drifts; medians are reported.
Routing, metrics and the routing log (SQLite) are on. Prompts rotate over the starter prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import psutil

ROOT = Path(__file__).parent.parent
ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
)
UPSTREAM_PORT, GATEWAY_PORT = 18090, 18091
LUA = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local at = 0
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
request = function()
  at = at %% #bodies + 1
  return wrk.format(nil, "/v1/chat/completions", nil, bodies[at])
end
done = function(summary, latency)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format("RESULT %%f %%f %%f %%d", latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    summary.requests / summary.duration * 1e6, bad))
end
"""


def main() -> None:
    options = _options()
    for command in ("nginx", "wrk"):
        if shutil.which(command) is None:
            sys.exit(f"{command} is not on PATH; on Debian: apt-get install nginx-light wrk")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = _load_script(folder)
        stack.enter_context(_upstream(folder))
        gateway, ready_s = stack.enter_context(_gateway(folder, options.workers, options.home))
        targets = {"direct": UPSTREAM_PORT, "coe": GATEWAY_PORT}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in targets}
        for port in targets.values():
            _wrk(port, script, connections=8, seconds=2)  # warm up
        for _ in range(options.rounds):
            for name, port in targets.items():
                one = _wrk(port, script, connections=1, seconds=options.seconds)
                many = _wrk(port, script, connections=32, seconds=options.seconds)
                rounds[name].append(
                    {"p50_ms_c1": one[0], "p99_ms_c1": one[1], "rps_c32": many[2], "failed": one[3] + many[3]}
                )
        result = {name: {key: _median(found, key) for key in found[0]} for name, found in rounds.items()}
        result["coe"] |= {"rss_mb": _rss_mb(gateway), "ready_s": round(ready_s, 2), "workers": options.workers}
        result["coe"]["added_p50_ms"] = round(result["coe"]["p50_ms_c1"] - result["direct"]["p50_ms_c1"], 3)
    _report(result, options.json)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _load_script(folder: Path) -> Path:
    lines = (ROOT / "routers" / "starter" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    Random(0).shuffle(prompts)
    bodies = folder / "bodies.jsonl"
    bodies.write_text(
        "".join(json.dumps({"model": "auto", "messages": [{"role": "user", "content": p}]}) + "\n" for p in prompts)
    )
    script = folder / "load.lua"
    script.write_text(LUA % bodies)
    return script


@contextmanager
def _upstream(folder: Path) -> Iterator[None]:
    conf = folder / "nginx.conf"
    conf.write_text(
        f"""
        daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; client_body_temp_path {folder}/body; client_max_body_size 64m; keepalive_requests 1000000000;
          server {{
            listen 127.0.0.1:{UPSTREAM_PORT};
            location / {{ default_type application/json; return 200 '{ANSWER}'; }}
          }}
        }}"""
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(conf)], stderr=subprocess.DEVNULL)
    try:
        _until_answers(f"http://127.0.0.1:{UPSTREAM_PORT}/")
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _gateway(folder: Path, workers: int, home: Path) -> Iterator[tuple[psutil.Process, float]]:
    state = folder / "state"
    shutil.copytree(home / "artifacts", state / "artifacts")
    config = folder / "experts.yaml"
    config.write_text(_declaration())
    env = os.environ | {"COE_HOME": str(state), "COE_WORKERS": str(workers), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "coe.cli", "serve", "--config", str(config), "--port", str(GATEWAY_PORT)]
    begin = time.monotonic()
    process = subprocess.Popen(command, env=env, cwd=ROOT)
    try:
        _until_answers(f"http://127.0.0.1:{GATEWAY_PORT}/health/ready")
        yield psutil.Process(process.pid), time.monotonic() - begin
    finally:
        process.terminate()
        process.wait()


def _declaration() -> str:
    """The shipped declaration with every expert at the static upstream."""
    text = (ROOT / "experts.yaml").read_text(encoding="utf-8")
    return text.replace(
        "    runtime: transformers", f"    runtime: external\n    base_url: http://127.0.0.1:{UPSTREAM_PORT}/v1"
    )


def _until_answers(url: str) -> None:
    for _ in range(2000):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.02)
    sys.exit(f"nothing answers at {url}")


def _wrk(port: int, script: Path, *, connections: int, seconds: int) -> tuple[float, float, float, float]:
    """p50 and p99 in ms, requests per second, failed requests."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"RESULT (\S+) (\S+) (\S+) (\d+)", output)
    assert found is not None, output
    return float(found[1]), float(found[2]), float(found[3]), float(found[4])


def _median(rounds: list[dict[str, float]], key: str) -> float:
    return round(statistics.median(found[key] for found in rounds), 3)


def _rss_mb(process: psutil.Process) -> float:
    """Of the largest process: a worker. Forked pages that it shares with its parent count in full."""
    return round(max(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 1e6, 1)


def _report(result: dict[str, dict[str, float]], path: Path | None) -> None:
    for name, figures in result.items():
        print(name, "  ".join(f"{key}={value:g}" for key, value in figures.items()))
    if path:
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
