"""Start, sleep, wake and stop times of real model servers on this machine, and their memory when awake.

    python benchmarks/load_times.py --json FILE [--rounds 3] [--vllm-bin .venv-vllm/bin]

`benchmarks/residency.py --loads FILE` simulates with them. All run SmolLM2-135M-Instruct on the processor: vLLM, where
scripts/test-vllm has made its environment, `transformers serve`, and `llama-server` if it is on PATH; these two do not
sleep. Medians of the rounds; a start is up to the first one-token answer, a stop until no process is left.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import psutil

from coe.fleet import probe
from coe.fleet.engines.admin import EngineClient
from coe.fleet.planning import local_servers
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec, Timeouts
from coe.registry import ExpertSpec

VLLM = {"dtype": "bfloat16", "enforce-eager": True, "max-model-len": 1024, "max-num-seqs": 4}
VLLM |= {"kv-cache-memory-bytes": "256M"}
MODEL = "SmolLM2-135M-Instruct"


async def seconds(work: Awaitable[Any]) -> float:
    begin = time.monotonic()
    await work
    return time.monotonic() - begin


def memory_gb(logs: Path) -> float:
    """Of all processes of the server, shared pages counted once."""
    found = 0
    for process in psutil.process_iter():
        try:
            if any(Path(file.path).is_relative_to(logs) for file in process.open_files()):
                found += process.memory_full_info().pss
        except psutil.Error:
            continue
    return found / 2**30


async def once(spec: ServerSpec, *, sleeps: bool) -> dict[str, float | None]:
    async with probe.open_probe_session() as session:
        server = Server(spec, session=session, report=lambda _: None, timeouts=Timeouts())
        client = spec.open_client(spec.root, session)
        found: dict[str, float | None] = {}
        try:
            found["start_s"] = await seconds(server.start())
            found["memory_gb"] = memory_gb(spec.log.parent)
            found["sleep_s"] = await seconds(client.sleep(level=1)) if sleeps else None
            found["wake_s"] = await seconds(_woken(client, spec, session)) if sleeps else None
        finally:
            found["stop_s"] = await seconds(server.stop())
    return found


async def _woken(client: EngineClient, spec: ServerSpec, session: Any) -> None:
    await client.wake(level=1)
    while not await probe.is_ready(spec, session=session):  # noqa: ASYNC110  a server's state
        await asyncio.sleep(0.05)


def measure(rounds: int, vllm_bin: Path | None, folder: Path) -> dict[str, dict[str, float | None]]:
    declared: dict[str, tuple[ExpertSpec, Path]] = {
        "transformers": (ExpertSpec(name="transformers", model=MODEL, runtime="transformers"), Path(sys.executable)),
    }
    if vllm_bin is not None:
        declared["vllm"] = (ExpertSpec(name="vllm", model=MODEL, runtime="vllm", options=VLLM), vllm_bin / "python")
    if shutil.which("llama-server"):
        llama = ExpertSpec(name="llama.cpp", model=MODEL, runtime="llama.cpp", options={"ctx-size": 1024})
        declared["llama.cpp"] = (llama, Path(sys.executable))
    report = {}
    for name, (expert, python) in declared.items():
        specs, _ = local_servers([expert], cache=folder / "models", logs=folder / "logs", python=python)
        found = [asyncio.run(once(specs[0], sleeps=expert.runtime == "vllm")) for _ in range(rounds)]
        report[name] = {key: _middle([one[key] for one in found]) for key in found[0]}
        print(name, report[name], flush=True)
    return report


def _middle(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), 3) if known else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm-bin", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(given.rounds, given.vllm_bin, Path(folder))
    given.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
