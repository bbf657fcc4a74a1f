"""Gateway overhead: latency at one connection, requests per second at 32, against a bare pass-through and LiteLLM.

    .venv/bin/python -m benchmarks.gateway [--rounds 3] [--seconds 5] [--workers 1] [--prompts FILE] [--json FILE]
        [--litellm PROGRAM]

Needs nginx (the upstream, a fixed answer at C speed) and wrk (the load) on PATH (`apt-get install nginx-light wrk
redis-server`); a router is trained where `--home` has none. All targets alternate in every round, because the
machine's speed drifts; medians are reported. wrk corrects for coordinated omission; `p99_ms_in_turn` is of a client
that sends the next request after each response.

In the gateway, routing, a declared key with its limits, metrics and the routing log (SQLite) are on; several workers
share the key's limits through Redis. Prompts rotate over the starter prompts, which the router has learned, or over
FILE (JSONL, field prompt): of fresh ones a third goes through the sentence encoder. An eighth of the starter
prompts is not English and takes a pass of the multilingual encoder (23 ms of one core): give FILE to leave them out.

PROGRAM is the proxy of LiteLLM, whose packages are best apart from the project's:

    python3 -m venv /opt/litellm && /opt/litellm/bin/pip install 'litellm[proxy]!=1.82.7,!=1.82.8'
    .venv/bin/python -m benchmarks.gateway --litellm /opt/litellm/bin/litellm
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

import psutil

from benchmarks.harness import (
    BODIES,
    GATEWAY_PORT,
    KEY,
    PASSTHROUGH_PORT,
    ROOT,
    STARTER,
    UPSTREAM,
    UPSTREAM_PORT,
    gateway,
    in_turn,
    load_script,
    median,
    passthrough,
    require,
    rss_mb,
    running,
    upstream,
    wrk,
)

LITELLM_PORT = 18092
LITELLM = f"""model_list:
  - model_name: auto
    litellm_params: {{model: openai/m, api_base: {UPSTREAM}/v1, api_key: none}}
general_settings: {{master_key: {KEY}}}
"""


def main() -> None:
    options = _options()
    require("nginx", "wrk")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(upstream(folder))
        processes, ready = _targets(stack, folder, options)
        ports = {"direct": UPSTREAM_PORT, "passthrough": PASSTHROUGH_PORT, "coe": GATEWAY_PORT}
        if options.litellm:
            ports["litellm"] = LITELLM_PORT
        script = load_script(folder, options.prompts)
        bodies = (folder / BODIES).read_bytes().splitlines()
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
        for port in ports.values():
            wrk(port, script, connections=8, seconds=2)  # warm up
        for _ in range(options.rounds):
            for name, port in ports.items():
                one = wrk(port, script, connections=1, seconds=options.seconds)
                many = wrk(port, script, connections=32, seconds=options.seconds)
                turns = in_turn(port, bodies, seconds=options.seconds)
                figures = {"p50_ms_c1": one.p50, "p99_ms_c1": one.p99, "p99_ms_in_turn": quantiles(turns, n=100)[98]}
                rounds[name].append(figures | {"rps_c32": many.rps, "failed": one.failed + many.failed})
        result = {name: {key: median(found, key) for key in found[0]} for name, found in rounds.items()}
        for name, process in processes.items():
            result[name]["rss_mb"] = rss_mb(process)
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
    parser.add_argument("--litellm", metavar="PROGRAM")
    parser.add_argument("--home", type=Path, default=ROOT / ".coe", help="state folder with the trained router")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _targets(stack: ExitStack, folder: Path, options: argparse.Namespace) -> tuple[dict[str, psutil.Process], float]:
    """Start all servers; return their processes and the seconds until the gateway was ready."""
    processes = {"passthrough": stack.enter_context(passthrough())}
    served = gateway(folder, workers=options.workers, home=options.home, base_url=f"{UPSTREAM}/v1")
    processes["coe"], ready = stack.enter_context(served)
    if options.litellm:
        config = folder / "litellm.yaml"
        config.write_text(LITELLM)
        command = [options.litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(LITELLM_PORT)]
        env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        address = f"http://127.0.0.1:{LITELLM_PORT}/health/liveliness"
        litellm = running([*command, "--num_workers", "1"], ready=address, env=env, output=subprocess.DEVNULL)
        processes["litellm"] = stack.enter_context(litellm)
    return processes, ready


if __name__ == "__main__":
    main()
