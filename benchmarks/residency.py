"""Expert switches and waits of residency policies, simulated on traces with more experts than fit on a device.

    python -m benchmarks.residency [--json FILE] [--kind poisson] [--rate 4] [--length 600] [--experts 150] [--seeds 2]
        [--first-seed 0] [--max-wait 90]

Policy and scheduler are those of the service (coe.fleet.residency); only servers and time are simulated. A wait lasts
from a request's arrival to the start of its processing. Policies:

    lru    loads are in the order of arrival; the idle experts used longest ago leave, for the next two loads at a time
    coe    the service's: by urgency, and with a bound of the wait for busy experts

`bound` is a number of switches that no policy goes below unless a request waits longer than it may with `coe`.
"""

from __future__ import annotations

import argparse
import heapq
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from coe.fleet.residency.policy import Action, DeviceState, Schedule, Scheduler, ServerProfile, plan

MEMORY, HOST_MEMORY = 80.0, 2048.0
"""GB of the device, and of the host's RAM for experts asleep: enough."""
SMALLEST, LARGEST = 4.0, 12.0
"""GB of an expert, uniform: 2B to 8B parameters with some room for conversations."""
SLOTS = 8
"""Requests that one expert works on at a time; more queue at it."""
WAIT_TIMEOUT = 120.0
"""Seconds of the default `residency.wait_timeout`, after which a real request would go elsewhere or get 503."""
CATEGORIES = 16
SERVICE, SPREAD = 3.0, 0.6
"""Seconds of work a request, lognormal: the mean, and the deviation of the logarithm."""
AHEAD = 2
"""Loads that `lru` makes room for at a time."""


# -------------------------------------------------------------------------------------------------------------- traces


@dataclass(frozen=True, slots=True)
class Request:
    """Its arrival in seconds from the beginning, its expert by number, and seconds of work."""

    at: float
    expert: int
    work: float


@dataclass(frozen=True)
class Traffic:
    """Parameters of all traces: number of experts, mean requests a second, and length in seconds."""

    experts: int
    rate: float
    length: float
    seed: int

    @cached_property
    def popularity(self) -> np.ndarray:
        """Zipf's law over a random order; it has nothing to do with the experts' categories."""
        order = np.random.default_rng(self.seed + 1).permutation(self.experts)
        share = np.empty(self.experts)
        share[order] = 1.0 / np.arange(1, self.experts + 1)
        return share / share.sum()

    @cached_property
    def category_of(self) -> np.ndarray:
        return np.random.default_rng(self.seed + 2).integers(CATEGORIES, size=self.experts)

    @cached_property
    def sizes(self) -> np.ndarray:
        """GB of each expert."""
        return np.random.default_rng(self.seed + 3).uniform(SMALLEST, LARGEST, size=self.experts)

    def trace(self, kind: str) -> list[Request]:
        """The requests of a kind of traffic."""
        rng, requests = np.random.default_rng(self.seed), []
        for at, expert in KINDS[kind](self, rng):
            work = rng.lognormal(np.log(SERVICE) - SPREAD**2 / 2, SPREAD)
            requests.append(Request(float(at), int(expert), float(work)))
        return requests


Arrivals = Iterator[tuple[float, int]]
"""Times and experts."""


def poisson(traffic: Traffic, rng: np.random.Generator) -> Arrivals:
    """Independent requests at a constant rate."""
    times = np.cumsum(rng.exponential(1 / traffic.rate, size=round(traffic.rate * traffic.length)))
    yield from zip(times, rng.choice(traffic.experts, size=len(times), p=traffic.popularity), strict=True)


def bursty(traffic: Traffic, rng: np.random.Generator) -> Arrivals:
    """Half of the requests come in bursts: some 20 for one expert within 10 s (jobs, evaluations, agents)."""
    half = round(traffic.rate * traffic.length / 2)
    times = list(rng.uniform(0, traffic.length, size=half))
    experts = list(rng.choice(traffic.experts, size=half, p=traffic.popularity))
    for _ in range(half // 20):
        begin, expert = rng.uniform(0, traffic.length), int(rng.choice(traffic.experts, p=traffic.popularity))
        size = rng.poisson(20)
        times += list(begin + rng.uniform(0, 10.0, size=size))
        experts += [expert] * size
    yield from sorted(zip(times, experts, strict=True))


def correlated(traffic: Traffic, rng: np.random.Generator) -> Arrivals:
    """Conversations of some 5 turns that stay with their expert, 20 s apart; every 10 minutes four of the categories
    are in fashion and draw three quarters of the new conversations."""
    share, arrivals = traffic.popularity, []
    for phase in np.arange(0, traffic.length, 600.0):
        fashion = np.isin(traffic.category_of, rng.choice(CATEGORIES, size=4, replace=False))
        liked = 0.75 * share * fashion / (share * fashion).sum() + 0.25 * share * ~fashion / (share * ~fashion).sum()
        for _ in range(rng.poisson(traffic.rate * 600.0 / 5)):
            at, expert = phase + rng.uniform(0, 600.0), int(rng.choice(traffic.experts, p=liked))
            for _ in range(rng.geometric(1 / 5)):
                arrivals.append((at, expert))
                at += rng.exponential(20.0)
    yield from sorted(arrivals)


def daily(traffic: Traffic, rng: np.random.Generator) -> Arrivals:
    """A day's cycle in the length of the trace: the rate swings by 80 % about its mean, and each category has its peak
    at another hour."""
    share, category_of = traffic.popularity, traffic.category_of
    for at in np.sort(rng.uniform(0, traffic.length, size=rng.poisson(2 * traffic.rate * traffic.length))):
        hour = 2 * np.pi * at / traffic.length
        if rng.uniform() * 2 > 1 + 0.8 * np.sin(hour - np.pi / 2):
            continue
        liked = share * (1 + 0.8 * np.sin(hour - 2 * np.pi * category_of / CATEGORIES))
        yield at, int(rng.choice(traffic.experts, p=liked / liked.sum()))


def shifting(traffic: Traffic, rng: np.random.Generator) -> Arrivals:
    """As poisson, but the popularity of the experts is drawn anew three times."""
    times = np.cumsum(rng.exponential(1 / traffic.rate, size=round(traffic.rate * traffic.length)))
    share, phase = traffic.popularity, 0
    for at in times:
        if int(4 * at / traffic.length) != phase:
            phase = int(4 * at / traffic.length)
            share = share[rng.permutation(traffic.experts)]
        yield at, int(rng.choice(traffic.experts, p=share))


KINDS: dict[str, Callable[[Traffic, np.random.Generator], Arrivals]] = {
    kind.__name__: kind for kind in (poisson, bursty, correlated, daily, shifting)
}


# ------------------------------------------------------------------------------------------------------------ policies


def lru(state: DeviceState) -> Schedule:
    """Loads in the order of arrival, which overlap with unloading: none waits for one whose expert is not awake, and
    idle servers leave for the next AHEAD loads while another one is under way."""
    actions: list[Action] = []
    loading, ahead, free = any(server.tier == "loading" for server in state.servers), 0, state.free
    available = free + sum(server.device_memory for server in state.servers if server.tier == "unloading")
    asked = sorted((one for one in state.servers if one.waiting), key=lambda one: next(iter(one.waiting.values())))
    staying = {server.key for server in asked}
    for server in asked:
        if server.tier == "awake":
            actions.append(Action("admit", server.key))
        elif server.tier in ("asleep", "stopped") and ahead < AHEAD:
            ahead += 1
            if not loading and server.profile.memory <= free:
                actions.append(Action("load", server.key))
                loading = True
            leaving = _leaving(server.profile.memory - available, state, staying=staying)
            if leaving is None:
                ahead = AHEAD
                continue
            available += sum(one.device_memory for one in state.servers if one.key in leaving) - server.profile.memory
            staying |= leaving
            actions += [Action("sleep", key) for key in sorted(leaving)]
    return Schedule(tuple(actions))


def _leaving(lacking: float, state: DeviceState, *, staying: Collection[str]) -> set[str] | None:
    """The idle servers other than `staying` that free `lacking` GB; None if too few are idle."""
    leaving = set[str]()
    idle = [s for s in state.servers if s.tier == "awake" and not s.in_flight and s.key not in staying]
    for server in sorted(idle, key=lambda s: s.last_used):
        if lacking <= 0:
            break
        lacking -= server.device_memory
        leaving.add(server.key)
    return leaving if lacking <= 0 else None


POLICIES: dict[str, Callable[[DeviceState], Schedule]] = {"lru": lru, "coe": plan}


# ---------------------------------------------------------------------------------------------------------- simulation


class Simulation:
    """The service's scheduler with one policy on one trace. All experts are asleep at first; each wakes and falls
    asleep in 0.5 s and 50 ms a GB.

    `waits` are seconds from the arrival of each request until its expert begins to work on it.
    """

    def __init__(
        self, traffic: Traffic, trace: Sequence[Request], *, policy: Callable[[DeviceState], Schedule], max_wait: float
    ) -> None:
        self._trace = trace
        self._seconds = {str(number): 0.5 + float(size) / 20 for number, size in enumerate(traffic.sizes)}
        profiles = [
            ServerProfile(str(number), float(size), sleeps=True, host_memory=float(size))
            for number, size in enumerate(traffic.sizes)
        ]
        self._scheduler = Scheduler(profiles, memory=MEMORY, host_memory=HOST_MEMORY, max_wait=max_wait, policy=policy)
        for profile in profiles:
            self._scheduler.server_unloaded(profile.key, "asleep")
        self._events: list[tuple[float, int, Callable[[float], None] | None]] = []
        self._count = 0
        self._next_check: float | None = None
        self._queues: dict[str, deque[int]] = {profile.key: deque() for profile in profiles}
        self._busy = dict.fromkeys(self._queues, 0)
        self.waits = [-1.0] * len(trace)

    @property
    def switches(self) -> int:
        return sum(server.switches for server in self._scheduler.servers.values())

    @property
    def begun(self) -> int:
        """Requests whose work began before the last one arrived."""
        last = self._trace[-1].at
        return sum(one.at + wait <= last for one, wait in zip(self._trace, self.waits, strict=True))

    def run(self) -> Simulation:
        """Run until all work is done."""
        for ticket, request in enumerate(self._trace):
            self._at(request.at, partial(self._scheduler.request_arrived, ticket, str(request.expert)))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            if event is None and now != self._next_check:  # a later decision has set another time
                continue
            if event is not None:
                event(now)
            self._decide(now)
        assert min(self.waits, default=0.0) >= 0.0, "a request was not served"
        return self

    def _at(self, when: float, event: Callable[[float], None] | None) -> None:
        """At a time, `event` happens, if there is one, and the scheduler decides."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _decide(self, now: float) -> None:
        orders, admitted, next_check = self._scheduler.decide(now)
        for ticket in admitted:
            key = str(self._trace[ticket].expert)
            self._queues[key].append(ticket)
            self._begin(key, now)
        for order in orders:
            event = self._scheduler.server_loaded if order.verb == "load" else self._asleep
            self._at(now + self._seconds[order.key], partial(event, order.key))
        if next_check is not None and next_check != self._next_check:
            self._at(next_check, None)
        self._next_check = next_check

    def _asleep(self, key: str, _: float) -> None:
        self._scheduler.server_unloaded(key, "asleep")

    def _begin(self, key: str, now: float) -> None:
        while self._queues[key] and self._busy[key] < SLOTS:
            ticket = self._queues[key].popleft()
            self._busy[key] += 1
            self.waits[ticket] = now - self._trace[ticket].at
            self._at(now + self._trace[ticket].work, partial(self._done, ticket, key))

    def _done(self, ticket: int, key: str, now: float) -> None:
        self._busy[key] -= 1
        self._scheduler.request_ended(ticket)
        self._begin(key, now)


def bound(traffic: Traffic, trace: Sequence[Request], *, longest: float) -> int:
    """Switches that are needed if no request waits longer than `longest` seconds, whatever the policy knows.

    In a stretch of time from a to b, every expert asked for from a to b - longest is awake at some time; those that do
    not fit beside each other at a must be woken within. The bound adds up the best partition into stretches.
    """
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
            fit = int((np.cumsum(sorted(traffic.sizes[expert] for expert in seen)) <= MEMORY).sum())
            best[last] = max(best[last], best[first] + len(seen) - fit)
            if at > begin and len(seen) >= traffic.experts:
                break
    return int(best.max())


# -------------------------------------------------------------------------------------------------------------- report


def measure(kinds: Sequence[str], traffics: Sequence[Traffic], max_wait: float) -> dict[str, Any]:
    """By kind of trace: switches and waits of each policy over all seeds, and the bound."""
    report: dict[str, Any] = {}
    for kind in kinds:
        traces = [(traffic, traffic.trace(kind)) for traffic in traffics]
        report[kind], bounds = {}, 0
        for name, policy in POLICIES.items():
            runs = [Simulation(*pair, policy=policy, max_wait=max_wait).run() for pair in traces]
            report[kind][name] = _summary(runs)
            if name == "coe":
                bounds = sum(bound(*pair, longest=max(run.waits)) for pair, run in zip(traces, runs, strict=True))
        report[kind]["bound"] = {"switches": bounds}
    return report


def _summary(runs: Sequence[Simulation]) -> dict[str, float]:
    waits = np.concatenate([run.waits for run in runs])
    p50, p95 = np.percentile(waits, (50, 95))
    return {
        "switches": sum(run.switches for run in runs),
        "mean_wait_s": round(float(waits.mean()), 2),
        "p50_wait_s": round(float(p50), 2),
        "p95_wait_s": round(float(p95), 2),
        "longest_wait_s": round(float(waits.max()), 1),
        "begun_in_trace": round(sum(run.begun for run in runs) / len(waits), 4),
        "in_time": round(float((waits <= WAIT_TIMEOUT).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="default: all")
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second")
    parser.add_argument("--length", type=float, default=600.0, help="seconds")
    parser.add_argument("--experts", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0, help="choices were made on 11 to 13")
    parser.add_argument("--max-wait", type=float, default=90.0, help="as declared, seconds")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    traffics = [Traffic(options.experts, options.rate, options.length, seed) for seed in seeds]
    report = measure(options.kind or list(KINDS), traffics, options.max_wait)
    for kind, figures in report.items():
        for name, row in figures.items():
            print(f"{kind:12}{name:8}", "  ".join(f"{key} {value:g}" for key, value in row.items()))
    if options.json:
        options.json.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    main()
