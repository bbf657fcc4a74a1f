"""Compares the waits of real servers that share one place with those that the simulator gives for the same trace.

    python benchmarks/residency_truth.py --json FILE [--seconds 600] [--rate 0.15] [--max-wait 10] [--seed 0]

Two experts run SmolLM2-135M-Instruct under `transformers serve`, and the device holds one. A Poisson trace with bursts
asks for them through the residency socket, and each admitted request is sent to its server. A wait lasts from the
request to its grant. Two simulations see the same arrivals:

    before     with load, stop and work times measured before the run, one request at a time; these servers answer one
               after the other, so the simulated ones do
    observed   with the mean load and stop times of the run itself and each request's own time: what remains is the
               schedule's own error

Load times differ on a busy machine from one load to the next, so report its load average beside the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import aiohttp
import numpy as np
import orjson
from load_times import MODEL
from residency_simulation import SimulatedRequest, SimulatedServer, Simulation

from coe.errors import ExpertAsleep
from coe.fleet import probe
from coe.fleet.planning import local_servers
from coe.fleet.residency.client import ResidencyClient, connected_client
from coe.fleet.residency.devices import Device, ScheduledServer
from coe.fleet.residency.managed_server import ManagedServer
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.socket_server import serve_residency
from coe.fleet.residency.state import ServerProfile
from coe.fleet.server import Server
from coe.fleet.specs import ServerSpec, Timeouts
from coe.registry import ExpertSpec

NAMES = ("a", "b")
TOKENS = 16
"""Tokens of an answer."""
SIZE, MEMORY = 1.0, 1.5
"""GB of an expert, as declared, and of the device."""
LONGEST_WAIT = 600.0
ROUNDS = 2
"""Measurements before the run."""


@dataclass
class Observed:
    """Seconds, of each request and of each load and stop."""

    waits: dict[int, float] = field(default_factory=dict)
    work: dict[int, float] = field(default_factory=dict)
    loads: list[float] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)


def trace(seconds: float, rate: float, *, seed: int) -> list[tuple[float, str]]:
    """Arrivals in seconds and experts. The second expert gets a third of the requests, some in bursts of three."""
    rng, at, found = np.random.default_rng(seed), 0.0, list[tuple[float, str]]()
    while (at := at + float(rng.exponential(1.5 / rate))) < seconds:
        name = NAMES[int(rng.uniform() < 1 / 3)]
        burst = 3 if rng.uniform() < 0.25 else 1
        found += [(at + 0.5 * number, name) for number in range(burst)]
    return sorted(found)


async def answer(session: aiohttp.ClientSession, spec: ServerSpec) -> float:
    """Sends one request; returns its seconds."""
    began = time.monotonic()
    messages = [{"role": "user", "content": "Tell me about the sea."}]
    body = {"model": spec.model, "messages": messages, "max_tokens": TOKENS}
    async with session.post(f"{spec.root}/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        await response.read()
    return time.monotonic() - began


def timed(observed: Observed) -> None:
    """Has every server note what its loads and stops take."""
    load, unload = ManagedServer.load, ManagedServer.unload

    async def timed_load(server: ManagedServer) -> None:
        began = time.monotonic()
        await load(server)
        observed.loads.append(time.monotonic() - began)

    async def timed_unload(server: ManagedServer, *, sleep: bool) -> Any:
        began = time.monotonic()
        try:
            return await unload(server, sleep=sleep)
        finally:
            observed.stops.append(time.monotonic() - began)

    ManagedServer.load, ManagedServer.unload = timed_load, timed_unload  # type: ignore[method-assign]


async def request(
    number: int, at: float, name: str, client: ResidencyClient, specs: dict[str, ServerSpec], observed: Observed
) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(at - loop.time(), 0.0))
    began = loop.time()
    try:
        release = await client.acquire(name, deadline=began + LONGEST_WAIT, stand_in="")
    except ExpertAsleep as error:
        print(f"request {number} was refused: {error}", flush=True)
        return
    observed.waits[number] = loop.time() - began
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LONGEST_WAIT)) as session:
            observed.work[number] = await answer(session, specs[name])
    finally:
        release()


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that a server takes to start and to stop, and for one request."""

    start_s: float
    stop_s: float
    work_s: float


async def measured_before(spec: ServerSpec) -> Times:
    """Medians of some rounds, each with one server and one request at a time."""
    found = []
    async with probe.open_probe_session() as session, aiohttp.ClientSession() as client:
        for _ in range(ROUNDS):
            server, began = Server(spec, session=session, report=print, timeouts=Timeouts()), time.monotonic()
            try:
                await server.start()
                start = time.monotonic() - began
                work = [await answer(client, spec) for _ in range(ROUNDS)]
            finally:
                began = time.monotonic()
                await server.stop()
            found.append(Times(start, time.monotonic() - began, median(work)))
    return Times(*(median(getattr(one, name) for one in found) for name in Times.__slots__))


async def real(
    arrivals: list[tuple[float, str]], specs: list[ServerSpec], folder: Path, *, max_wait: float
) -> Observed:
    observed = Observed()
    timed(observed)
    servers = tuple(ScheduledServer(ServerProfile(spec.key, SIZE), spec) for spec in specs)
    device = Device("machine", MEMORY, 0.0, servers, {name: name for name in NAMES})
    residency = Residency([device], first=["a"], max_wait=max_wait, report=print)
    by_name, address = {spec.key: spec for spec in specs}, folder / "s"
    async with residency, serve_residency(residency, address), connected_client(address) as client:
        observed.loads.clear()  # the start before the first request
        began = asyncio.get_running_loop().time()
        work = [request(n, began + at, name, client, by_name, observed) for n, (at, name) in enumerate(arrivals)]
        await asyncio.gather(*work)
    return observed


def simulated(
    arrivals: list[tuple[float, str]], work: list[float], times: Times, *, slots: int, max_wait: float
) -> list[float]:
    """The waits in order of arrival."""
    servers = [
        SimulatedServer(ServerProfile(name, SIZE), times.start_s, times.start_s, stop_s=times.stop_s) for name in NAMES
    ]
    requests = [SimulatedRequest(at, name, one) for (at, name), one in zip(arrivals, work, strict=True)]
    simulation = Simulation(servers, requests, memory=MEMORY, max_wait=max_wait, awake=["a"], slots=slots)
    return simulation.run().granted


def compared(real_waits: list[float], simulated_waits: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(simulated_waits, (50, 95))
    true50, true95 = np.percentile(real_waits, (50, 95))
    error = np.abs(np.subtract(simulated_waits, real_waits))
    return {
        "mean_s": round(mean(simulated_waits), 3),
        "p50_s": round(float(p50), 3),
        "p95_s": round(float(p95), 3),
        "mean_ratio": round(mean(simulated_waits) / max(mean(real_waits), 1e-9), 3),
        "p50_ratio": round(float(p50 / max(true50, 1e-9)), 3),
        "p95_ratio": round(float(p95 / max(true95, 1e-9)), 3),
        "mean_error_of_a_request_s": round(float(error.mean()), 3),
    }


def rounded(times: Times) -> dict[str, float]:
    return {name: round(value, 2) for name, value in asdict(times).items()}


async def measure(seconds: float, rate: float, max_wait: float, seed: int, folder: Path) -> dict[str, Any]:
    levels = ("info", "warning")  # two servers: experts of equal options would share one
    experts = [
        ExpertSpec(name=name, model=MODEL, runtime="transformers", options={"log-level": level})
        for name, level in zip(NAMES, levels, strict=True)
    ]
    specs, _ = local_servers(experts, cache=folder / "models", logs=folder / "logs", python=Path(sys.executable))
    alone = await measured_before(specs[0])
    arrivals = trace(seconds, rate, seed=seed)
    load_before = os.getloadavg()[0]
    observed = await real(arrivals, specs, folder, max_wait=max_wait)
    served = sorted(observed.waits)
    waits = [observed.waits[number] for number in served]
    kept = [arrivals[number] for number in served]
    work = [observed.work.get(number, 0.0) for number in served]
    before = simulated(kept, [alone.work_s] * len(kept), alone, slots=1, max_wait=max_wait)
    seen = Times(mean(observed.loads), mean(observed.stops), mean(work))
    then = simulated(kept, work, seen, slots=len(kept), max_wait=max_wait)
    return {
        "requests": len(arrivals),
        "refused": len(arrivals) - len(served),
        "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "before": rounded(alone) | compared(waits, before),
        "observed": rounded(seen) | compared(waits, then),
        "loads": {"number": len(observed.loads), "seconds": [round(one, 2) for one in observed.loads]},
        "real": {
            "mean_s": round(mean(waits), 3),
            "p50_s": round(float(np.percentile(waits, 50)), 3),
            "p95_s": round(float(np.percentile(waits, 95)), 3),
            "work_s": round(mean(work), 3),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=0.15, help="requests a second")
    parser.add_argument("--max-wait", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(measure(given.seconds, given.rate, given.max_wait, given.seed, Path(folder)))
    given.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    main()
