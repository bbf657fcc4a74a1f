"""Expert switches and waits of residency policies, simulated on traces with more experts than fit on a device.

    python benchmarks/residency.py [--json FILE] [--kind poisson] [--policies coe lru] [--rate 4] [--length 600]
                                   [--experts 150] [--seeds 2] [--first-seed 0] [--max-wait 90]
                                   [--loads FILE --memory GB]

Policy and scheduler state are those of the service (coe.fleet.residency); only servers and time are simulated. A wait
lasts from a request's arrival to the start of its processing. Policies:

    lru       loads are in the order of arrival; the idle expert used longest ago leaves
    lru_ahead as lru, but experts leave for the next one while another still loads
    coe       the service's: as lru_ahead, by urgency, and with a bound of the wait for busy experts
    swap      llama-swap's: one expert at a time, in the order of arrival; only if it is named

Sizes and times of experts are stated below, or those of real servers that load_times.py has measured (`--loads`), each
in turn. `bound` is a number of switches that no policy goes below unless somebody waits longer than `coe` lets anybody
wait.
"""

from __future__ import annotations

import argparse
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from residency_loads import MEMORY, Host, Load, read_loads
from residency_policies import in_order, in_order_ahead, swap
from residency_simulation import SimulatedRequest, SimulatedServer, Simulation
from residency_traces import KINDS, Asked, Traffic

from coe.fleet.residency.policy import plan
from coe.fleet.residency.state import DeviceState, Schedule, ServerProfile

HOST_MEMORY = 2048.0
"""GB of the host's RAM for experts asleep: enough."""
WAIT_TIMEOUT = 120.0
"""Seconds of the default `residency.wait_timeout`, after which a real request would go elsewhere or get 503."""


class Run:
    """One policy on one trace. `waits` are in seconds, until work begins."""

    def __init__(
        self,
        trace: Sequence[Asked],
        experts: int,
        *,
        seed: int,
        policy: Callable[[DeviceState], Schedule],
        max_wait: float,
        host: Host,
    ) -> None:
        loads = {str(index): load for index, load in enumerate(host.loads(experts, seed=seed))}
        servers = [_server(key, load) for key, load in loads.items()]
        self._trace = trace
        self._simulation = Simulation(
            servers,
            [SimulatedRequest(one.at, str(one.expert), one.work) for one in trace],
            memory=host.memory,
            host_memory=HOST_MEMORY,
            max_wait=max_wait,
            policy=policy,
            asleep=[key for key, load in loads.items() if load.sleeps],  # all have run before
        )

    @property
    def switches(self) -> int:
        return self._simulation.switches

    @property
    def waits(self) -> list[float]:
        return self._simulation.begun

    @property
    def begun(self) -> int:
        """Requests whose work began before the last one arrived."""
        last = self._trace[-1].at
        return sum(one.at + wait <= last for one, wait in zip(self._trace, self.waits, strict=True))

    def run(self) -> Run:
        self._simulation.run()
        return self


def _server(key: str, load: Load) -> SimulatedServer:
    profile = ServerProfile(key, load.memory_gb, sleeps=load.sleeps, host_memory=load.memory_gb if load.sleeps else 0.0)
    return SimulatedServer(profile, load.wake_s, load.start_s, load.sleep_s, load.stop_s)


def bound(trace: Sequence[Asked], experts: int, *, seed: int, longest: float, host: Host) -> int:
    """Switches that are needed if no request waits longer than `longest` seconds, whatever the policy knows.

    In a stretch of time from a to b, every expert asked for from a to b - longest is awake at some time; those that do
    not fit beside each other at a must be woken within. The bound adds up the best partition into stretches.
    """
    sizes = [one.memory_gb for one in host.loads(experts, seed=seed)]
    times = [request.at for request in trace]
    step = max(longest / 4, times[-1] / 400)
    marks = np.arange(0.0, times[-1] + longest + 2 * step, step)
    best = np.zeros(len(marks), dtype=np.int64)
    for first in range(len(marks)):
        if first:
            best[first] = max(best[first], best[first - 1])
        seen: set[int] = set()
        begin = at = bisect_left(times, marks[first])
        for last in range(first + 1, len(marks)):
            deadline = bisect_right(times, marks[last] - longest)
            seen.update(request.expert for request in trace[at:deadline])
            at = max(at, deadline)
            fit = int((np.cumsum(sorted(sizes[expert] for expert in seen)) <= host.memory).sum())
            best[last] = max(best[last], best[first] + len(seen) - fit)
            if at > begin and len(seen) >= experts:
                break
    return int(best.max())


POLICIES: dict[str, Callable[[DeviceState], Schedule]] = {
    "lru": in_order,
    "lru_ahead": in_order_ahead,
    "coe": plan,
    "swap": swap,
}
DEFAULT_POLICIES = tuple(name for name in POLICIES if name != "swap")
"""`swap` holds one expert at a time, so that it does not end within reason on the default traces."""


def simulate(
    names: Sequence[str], trace: Sequence[Asked], experts: int, *, seed: int, max_wait: float, host: Host
) -> dict[str, Run]:
    runs = {}
    for name in names:
        run = Run(trace, experts, seed=seed, policy=POLICIES[name], max_wait=max_wait, host=host)
        runs[name] = run.run()
    return runs


def summary(switches: int, waits: Sequence[float]) -> dict[str, Any]:
    p50, p95 = np.percentile(waits, (50, 95))
    return {"switches": switches, "p50_wait_s": round(float(p50), 2), "p95_wait_s": round(float(p95), 2)}


def measure(
    names: Sequence[str], kinds: Sequence[str], traffics: Sequence[Traffic], max_wait: float, host: Host
) -> dict[str, Any]:
    """By policy: switches and waits over all traces, and under `traces` those of each kind."""
    runs: dict[str, dict[str, list[Run]]] = {}
    bounds: dict[str, int] = {}
    for kind in kinds:
        for traffic in traffics:
            trace = list(KINDS[kind](traffic))
            done = simulate(names, trace, traffic.experts, seed=traffic.seed, max_wait=max_wait, host=host)
            for name, run in done.items():
                runs.setdefault(name, {}).setdefault(kind, []).append(run)
            if "coe" in done:
                longest = max(done["coe"].waits)
                least = bound(trace, traffic.experts, seed=traffic.seed, longest=longest, host=host)
                bounds[kind] = bounds.get(kind, 0) + least
    report: dict[str, Any] = {}
    for name, by_kind in runs.items():
        every = [run for found in by_kind.values() for run in found]
        report[name] = _summed(every) | {"traces": {kind: _summed(found) for kind, found in by_kind.items()}}
    if bounds:
        report["coe"]["bound"] = sum(bounds.values())
    for kind, number in bounds.items():
        report["coe"]["traces"][kind]["bound"] = number
    return report


def _summed(runs: Sequence[Run]) -> dict[str, Any]:
    waits = np.concatenate([run.waits for run in runs])
    begun = sum(run.begun for run in runs) / len(waits)
    more = {"longest_wait_s": round(float(waits.max()), 1), "mean_wait_s": round(float(waits.mean()), 2)}
    shares = {"begun_in_trace": round(begun, 4), "in_time": round(float((waits <= WAIT_TIMEOUT).mean()), 4)}
    return summary(sum(run.switches for run in runs), waits) | more | shares


def show(report: dict[str, Any]) -> None:
    for kind in next(iter(report.values()))["traces"]:
        print(f"\n{kind:12} switches  mean wait  p50 wait  p95 wait   longest (s)  begun in the trace  within 120 s")
        for name, reported in report.items():
            one = reported["traces"][kind]
            print(
                f"{name:12} {one['switches']:8} {one['mean_wait_s']:10.2f} {one['p50_wait_s']:9.2f} "
                f"{one['p95_wait_s']:9.2f} {one['longest_wait_s']:9.1f} "
                f"{one['begun_in_trace']:13.1%} {one['in_time']:18.1%}"
            )
            if "bound" in one:
                print(f"{'bound':12} {one['bound']:8}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(DEFAULT_POLICIES))
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--length", type=float, default=600.0, help="seconds")
    parser.add_argument("--experts", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="choices were made on 11 to 13")
    parser.add_argument("--max-wait", type=float, default=90.0, help="as declared, seconds")
    parser.add_argument("--loads", type=Path, metavar="FILE", help="measured ones, of load_times.py")
    parser.add_argument("--memory", type=float, default=MEMORY, help="GB of the device")
    given = parser.parse_args()
    kinds = list(KINDS) if given.kind == "all" else [given.kind]
    traffics = [
        Traffic(given.experts, given.rate, given.length, given.first_seed + seed) for seed in range(given.seeds)
    ]
    loads = read_loads(given.loads) if given.loads else ()
    host = Host(given.memory, loads)
    report = measure(given.policies, kinds, traffics, given.max_wait, host)
    show(report)
    if given.json:
        given.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
