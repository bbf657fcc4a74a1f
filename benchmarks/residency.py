"""Expert switches and waits of residency policies, simulated on traces with more experts than fit on a device.

    python benchmarks/residency.py [--json FILE] [--kind poisson] [--policies coe lru] [--rate 4] [--length 600]
                                   [--experts 150] [--seeds 2] [--max-wait 90] [--loads FILE --memory GB]

Policy and scheduler state are those of the service (coe.fleet.residency); only servers and time are simulated. A wait
lasts from a request's arrival to the start of its processing. Policies:

    fcfs_lru  requests begin in the order of arrival; the idle expert used longest ago leaves (the CoE paper's)
    lru       the same, but a request for an expert that is awake need not wait for those before it
    lfu_da    as lru, but the idle expert of fewest requests of late leaves
    coe       the service's: by urgency, once a load is worth its price
    offline   the service's, with knowledge of the next requests

Sizes and times of experts are stated below, or those of real servers that load_times.py has measured (`--loads`), each
in turn. `bound` is a number of switches that no policy goes below unless somebody waits longer than `coe` lets anybody
wait.
"""

from __future__ import annotations

import argparse
import heapq
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from residency_loads import MEMORY, Host, read_loads
from residency_policies import Oracle, frequency, in_order
from residency_traces import KINDS, Asked, Traffic

from coe.fleet.residency.policy import Action, DeviceState, Schedule, ServerProfile, plan
from coe.fleet.residency.scheduler import Forecast, Scheduler

HOST_MEMORY = 2048.0
"""GB of the host's RAM for experts asleep: enough."""
SLOTS = 8
"""Requests that one expert works on at a time; more queue at its server."""


def _check(now: float) -> None:
    """The event of a time at which the policy wants to decide again."""


class Run:
    """One policy on one trace. `waits` is in seconds, in the order in which work began."""

    def __init__(
        self,
        trace: Sequence[Asked],
        experts: int,
        *,
        seed: int,
        policy: Callable[[DeviceState], Schedule],
        forecast: Forecast,
        max_wait: float,
        host: Host,
    ) -> None:
        self._trace = trace
        self._loads = {str(index): load for index, load in enumerate(host.loads(experts, seed=seed))}
        made = [
            ServerProfile(key, one.memory_gb, sleeps=one.sleeps, host_memory=one.memory_gb if one.sleeps else 0.0)
            for key, one in self._loads.items()
        ]
        self._scheduler = Scheduler(
            [(one, self._loads[one.key].wake_s, self._loads[one.key].start_s) for one in made],
            memory=host.memory,
            host_memory=HOST_MEMORY,
            max_wait=max_wait,
            forecast=forecast,
            policy=policy,
        )
        for one in made:  # all have run before, as long as there is RAM
            self._put_to_sleep(one)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._next_check: float | None = None
        self._queues: dict[str, deque[int]] = {one.key: deque() for one in made}
        self._busy = dict.fromkeys(self._queues, 0)
        self._tiers: dict[str, str] = {}
        self.waits: list[float] = []
        self.begun = 0
        """Requests whose work began before the last one arrived."""

    def _put_to_sleep(self, one: ServerProfile) -> None:
        if one.sleeps and self._scheduler.state(0.0).host_free >= one.host_memory:
            self._scheduler.server_unloaded(one.key, "asleep")

    @property
    def switches(self) -> int:
        return self._scheduler.switches

    def run(self) -> Run:
        for ticket, request in enumerate(self._trace):
            self._at(request.at, partial(self._request_arrived, ticket))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            if event is _check and now != self._next_check:
                continue  # a later decision has set another
            event(now)
            self._carry_out(now)
        assert len(self.waits) == len(self._trace)
        return self

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _request_arrived(self, ticket: int, now: float) -> None:
        request = self._trace[ticket]
        self._scheduler.request_arrived(ticket, str(request.expert), now, category=str(request.category))

    def _carry_out(self, now: float) -> None:
        before = {server.key: server.tier for server in self._scheduler.state(now).servers}
        orders, admitted, next_check = self._scheduler.decide(now)
        for ticket in admitted:
            key = str(self._trace[ticket].expert)
            self._queues[key].append(ticket)
            self._begin(key, now)
        for order in orders:
            self._order(order, before[order.key], now)
        if next_check is not None and next_check != self._next_check:
            self._at(next_check, _check)
        self._next_check = next_check

    def _order(self, order: Action, tier: str, now: float) -> None:
        load = self._loads[order.key]
        if order.verb == "load":
            took = load.wake_s if tier == "asleep" else load.start_s
            self._at(now + took, partial(self._scheduler.server_loaded, order.key))
        else:
            rest = "asleep" if order.verb == "sleep" else "stopped"
            took = load.sleep_s if order.verb == "sleep" else load.stop_s
            self._at(now + took, lambda _: self._scheduler.server_unloaded(order.key, rest))

    def _begin(self, key: str, now: float) -> None:
        while self._queues[key] and self._busy[key] < SLOTS:
            ticket = self._queues[key].popleft()
            self._busy[key] += 1
            self.waits.append(now - self._trace[ticket].at)
            self.begun += now <= self._trace[-1].at
            self._at(now + self._trace[ticket].work, partial(self._done, ticket, key))

    def _done(self, ticket: int, key: str, now: float) -> None:
        self._busy[key] -= 1
        self._scheduler.request_ended(ticket, now)
        self._begin(key, now)


def bound(trace: Sequence[Asked], experts: int, *, seed: int, longest: float, host: Host) -> int:
    """Switches that are needed if nobody waits longer than `longest` seconds, whatever the policy knows.

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


def forecast() -> Forecast:
    return Forecast({}, now=0.0)


POLICIES: dict[str, Callable[[DeviceState], Schedule]] = {
    "fcfs_lru": partial(in_order, strict=True),
    "lru": partial(in_order, strict=False),
    "lfu_da": partial(in_order, strict=False, evicts=frequency),
    "coe": plan,
    "offline": plan,
}


def simulate(
    names: Sequence[str], trace: Sequence[Asked], experts: int, *, seed: int, max_wait: float, host: Host
) -> dict[str, Run]:
    runs = {}
    for name in names:
        known: Any = Oracle(trace, ahead=max_wait) if name == "offline" else forecast()
        run = Run(trace, experts, seed=seed, policy=POLICIES[name], forecast=known, max_wait=max_wait, host=host)
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
    return summary(sum(run.switches for run in runs), waits) | more | {"begun_in_trace": round(begun, 4)}


def show(report: dict[str, Any]) -> None:
    for kind in next(iter(report.values()))["traces"]:
        print(f"\n{kind:12} switches  mean wait  p50 wait  p95 wait   longest (s)  begun in the trace")
        for name, reported in report.items():
            one = reported["traces"][kind]
            print(
                f"{name:12} {one['switches']:8} {one['mean_wait_s']:10.2f} {one['p50_wait_s']:9.2f} "
                f"{one['p95_wait_s']:9.2f} {one['longest_wait_s']:9.1f} {one['begun_in_trace']:13.1%}"
            )
            if "bound" in one:
                print(f"{'bound':12} {one['bound']:8}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    parser.add_argument("--policies", nargs="+", choices=list(POLICIES), default=list(POLICIES))
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--length", type=float, default=600.0, help="seconds")
    parser.add_argument("--experts", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--max-wait", type=float, default=90.0, help="as declared, seconds")
    parser.add_argument("--loads", type=Path, metavar="FILE", help="measured ones, of load_times.py")
    parser.add_argument("--memory", type=float, default=MEMORY, help="GB of the device")
    given = parser.parse_args()
    kinds = list(KINDS) if given.kind == "all" else [given.kind]
    traffics = [Traffic(given.experts, given.rate, given.length, seed) for seed in range(given.seeds)]
    host = Host(given.memory, read_loads(given.loads) if given.loads else ())
    report = measure(given.policies, kinds, traffics, given.max_wait, host)
    show(report)
    if given.json:
        given.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
