"""Experts that share one GPU, on real vLLM servers: wake times, and goodput against llama-swap's policy.

    python benchmarks/residency_gpu.py --models MODELS --memory GB --json FILE --vllm-bin FOLDER
        [--sleep-memory GB] [--seconds 600] [--rate 1] [--max-wait 30] [--within 10] [--seed 0]

MODELS has a JSON object per line: `name`, `model` (folder or hub name) and `memory_gb`, say twenty of 0.5 to 8B
parameters. `--memory` is the card's memory for experts alone. Both policies serve the same trace (Poisson, Zipf
popularity, `benchmarks/residency_traces.py`), one after the other:

    coe    the service's, with vLLM's sleep level 1
    swap   llama-swap's default: one server at a time, in the order of arrival, stopped and not put to sleep

Goodput is the number of requests a second whose answer began within `--within` seconds. A wake is a load of a server
that slept; the first start of each is not one. A run ends with its last answer, or after twice `--seconds`.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
from residency_policies import swap
from residency_traces import Asked, Traffic, poisson
from residency_truth import answer

from coe.errors import ExpertAsleep
from coe.fleet.planning import local_servers
from coe.fleet.residency import residency as residency_module
from coe.fleet.residency.devices import Device, ScheduledServer, server_profile
from coe.fleet.residency.managed_server import ManagedServer
from coe.fleet.residency.policy import plan
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.scheduler import Scheduler
from coe.fleet.residency.state import DeviceState, Schedule
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec

POLICIES: dict[str, Callable[[DeviceState], Schedule]] = {"coe": plan, "swap": swap}


def declared(line: bytes, *, card: float) -> ExpertSpec:
    found = orjson.loads(line)
    share = round(found["memory_gb"] / card, 3)
    options = {"enable-sleep-mode": True, "gpu-memory-utilization": share, "max-model-len": 2048}
    return ExpertSpec(runtime="vllm", sleep_level=1, options=options, **found)


class Measured:
    """Seconds by kind: `first` until a request's answer, `wait` until its grant, `wake` and `start` of servers."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"first": [], "wait": [], "wake": [], "start": []}
        self.refused = 0

    def summary(self, *, length: float, within: float) -> dict[str, Any]:
        found: dict[str, Any] = {"refused": self.refused, "answered": len(self.seconds["first"])}
        for kind, values in self.seconds.items():
            if values:
                p50, p95 = np.percentile(values, (50, 95))
                found[f"{kind}_s"] = {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "count": len(values)}
        good = sum(value <= within for value in self.seconds["first"])
        return found | {"goodput_per_s": round(good / length, 4)}


def timed(measured: Measured) -> Callable[[], None]:
    """Has every server note what its loads take; returns the function that ends this."""
    load = ManagedServer.load

    async def timed_load(server: ManagedServer) -> None:
        kind, began = "wake" if server._server.running else "start", time.monotonic()
        await load(server)
        measured.seconds[kind].append(time.monotonic() - began)

    ManagedServer.load = timed_load  # type: ignore[method-assign]
    return partial(setattr, ManagedServer, "load", load)


async def request(one: Asked, began: float, residency: Residency, specs: Sequence[ServerSpec], found: Measured) -> None:
    """One request through the scheduler, in process, and to its server."""
    loop, spec = asyncio.get_running_loop(), specs[one.expert]
    await asyncio.sleep(max(began + one.at - loop.time(), 0.0))
    granted: asyncio.Future[None] = loop.create_future()

    def refused(reason: str, _: float) -> None:
        granted.set_exception(ExpertAsleep(reason, expert=spec.key))

    arrived = loop.time()
    ticket = residency.acquire(
        spec.key,
        timeout=3600.0,
        stand_in="",
        granted=lambda: granted.set_result(None),
        refused=refused,
    )
    try:
        await granted
        found.seconds["wait"].append(loop.time() - arrived)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
            await answer(session, spec)
        found.seconds["first"].append(loop.time() - arrived)
    except (ExpertAsleep, aiohttp.ClientError, AssertionError):
        found.refused += 1
    finally:
        if ticket is not None:
            residency.end(ticket)


async def served(
    name: str,
    experts: Sequence[ExpertSpec],
    specs: list[ServerSpec],
    trace: Sequence[Asked],
    *,
    memory: float,
    sleep_memory: float,
    max_wait: float,
) -> Measured:
    """The trace under one policy."""
    servers = tuple(
        ScheduledServer(server_profile([expert], spec.key), spec, 1)
        for expert, spec in zip(experts, specs, strict=True)
    )
    device = Device("card", memory, sleep_memory, servers, {spec.key: spec.key for spec in specs})
    measured = Measured()
    end_timing = timed(measured)
    residency_module.Scheduler = partial(Scheduler, policy=POLICIES[name])  # type: ignore[attr-defined]
    try:
        async with Residency([device], first=[], max_wait=max_wait, report=print) as residency:
            began = asyncio.get_running_loop().time()
            work = [request(one, began, residency, specs, measured) for one in trace]
            _, late = await asyncio.wait(map(asyncio.ensure_future, work), timeout=2 * trace[-1].at)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
    finally:
        end_timing()
        residency_module.Scheduler = Scheduler  # type: ignore[attr-defined]
    return measured


async def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    experts = [declared(line, card=given.memory) for line in given.models.read_bytes().splitlines() if line.strip()]
    python = given.vllm_bin / "python"
    traffic = Traffic(len(experts), given.rate, given.seconds, given.seed)
    trace = list(poisson(traffic))
    report: dict[str, Any] = {"experts": len(experts), "requests": len(trace), "within_s": given.within}
    for name in given.policies:
        specs, _ = local_servers(experts, cache=folder / "models", logs=folder / name, python=python)
        found = await served(
            name,
            experts,
            specs,
            trace,
            memory=given.memory,
            sleep_memory=given.sleep_memory,
            max_wait=given.max_wait,
        )
        report[name] = found.summary(length=given.seconds, within=given.within)
        print(name, report[name], flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--memory", type=float, required=True, help="GB of the card for experts alone")
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--vllm-bin", type=Path, metavar="FOLDER", required=True)
    parser.add_argument("--sleep-memory", type=float, default=100.0, help="GB of RAM for sleeping servers")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second")
    parser.add_argument("--max-wait", type=float, default=30.0)
    parser.add_argument("--within", type=float, default=10.0, help="seconds until an answer counts as good")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(measure(given, Path(folder)))
    given.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
