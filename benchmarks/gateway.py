"""Gateway overhead: latency at one connection, requests per second at 32, against a bare pass-through and LiteLLM.

    .venv/bin/python -m benchmarks.gateway [--rounds 3] [--seconds 5] [--workers 1] [--prompts FILE ...]
        [--turns 50 ...] [--json FILE] [--litellm PROGRAM]

Needs nginx (the upstream, a fixed answer at C speed) and wrk (the load) on PATH (`apt-get install nginx-light wrk
redis-server`); a router is trained where `--home` has none. All targets alternate in every round, because the
machine's speed drifts; medians are reported. wrk corrects for coordinated omission; `p99_ms_in_turn` is of a client
that sends the next request after each response.

In the gateway, routing, a declared key with its limits, metrics and the routing log (SQLite) are on; several workers
share the key's limits through Redis. The loads are `english`, the ASCII starter prompts, which the router has learned;
`mix`, all of them, of which an eighth is in other languages; one for each FILE (JSONL, field prompt), whose prompts
the router has not learned unless it was trained on them; and the English ones as the last of so many `--turns`.

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
    GATEWAY_PORT,
    KEY,
    PASSTHROUGH_PORT,
    ROOT,
    STARTER,
    UPSTREAM,
    UPSTREAM_PORT,
    chats,
    gateway,
    in_turn,
    load_script,
    median,
    passthrough,
    read_prompts,
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
        starter = read_prompts(STARTER)
        english = [text for text in starter if text.isascii()]
        loads = {"english": chats(english), "mix": chats(starter)}
        loads |= {file.stem: chats(read_prompts(file)) for file in options.prompts}
        loads |= {f"turns-{turns}": chats(english[:1000], turns=turns) for turns in options.turns}
        scripts = {name: load_script(folder, bodies, name) for name, bodies in loads.items()}
        rounds: dict[tuple[str, str], list[dict[str, float]]] = {(load, name): [] for load in loads for name in ports}
        for port in ports.values():
            wrk(port, scripts["mix"], connections=8, seconds=2)  # warm up
        for _ in range(options.rounds):
            for load, name in rounds:
                port, script = ports[name], scripts[load]
                one = wrk(port, script, connections=1, seconds=options.seconds)
                many = wrk(port, script, connections=32, seconds=options.seconds)
                turns = in_turn(port, loads[load], seconds=options.seconds)
                figures = {"p50_ms_c1": one.p50, "p99_ms_c1": one.p99, "p99_ms_in_turn": quantiles(turns, n=100)[98]}
                rounds[load, name].append(figures | {"rps_c32": many.rps, "failed": one.failed + many.failed})
        memory = {name: rss_mb(process) for name, process in processes.items()}
    result: dict[str, dict[str, dict[str, float]]] = {load: {} for load in loads}
    for (load, name), found in rounds.items():
        row = result[load][name] = {key: median(found, key) for key in found[0]}
        row["share_of_passthrough"] = round(row["rps_c32"] / median(rounds[load, "passthrough"], "rps_c32"), 3)
        if name != "direct":
            row |= {
                f"added_{key}": round(row[key] - result[load]["direct"][key], 3) for key in found[0] if "_ms" in key
            }
        print(load, name, "  ".join(f"{key}={value:g}" for key, value in row.items()))
    print("rss_mb", memory, f"ready_s={ready:.2f} workers={options.workers}")
    if options.json:
        options.json.write_text(json.dumps({"loads": result, "rss_mb": memory, "ready_s": ready}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--prompts", type=Path, nargs="*", default=[])
    parser.add_argument("--turns", type=int, nargs="*", default=[50])
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
