"""Estimates how long requests wait for experts that share devices, and adds these waits to a plan's latencies.

The service's scheduler is simulated on the traffic of a plan: the logged rate of requests, Poisson arrivals, and stored
load times. A wait depends on the whole plan, because its experts share memory. So it cannot be a constant in the
mixed-integer program. Instead, `solve_with_waits` does a best-first search over the sets of experts that a plan may not
use. Each node is solved exactly without waits, which is an upper bound for its plans, and its plan is simulated. The
first plan that keeps the latency limit with its own waits is chosen. A plan over the same experts that was solved with
these waits replaces it if it is better.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coe.errors import ConfigError, DataError
from coe.fleet.engines.catalog import ENGINES
from coe.fleet.planning import group_by_server
from coe.fleet.residency.devices import load_seconds, server_profile
from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.load_times import LOAD_TIMES_FILE, LoadTimes
from coe.fleet.residency.simulation import SimulatedDevice, SimulatedRequest, SimulatedServer, Simulation
from coe.learning.estimation.logged_uses import LoggedUses
from coe.mapping import Assignment, PlanInputs, Problem, planned_quality, planned_use
from coe.registry import ExpertSpec, Registry
from coe.settings import Settings

Array = NDArray[np.float64]
SEEDS = 3
"""Simulations of a plan; the standard error is that of their means."""
SIMULATED_REQUESTS, MIN_SIMULATED, EVENT_BUDGET = 600, 200, 12_000
"""Requests of a simulation: the maximum, the minimum, and the target of requests times servers."""
WARM_UP = 0.1
"""Share of the requests at the beginning that is discarded."""
MIN_LOGGED_REQUESTS = 100
"""Smallest number of logged requests from which a rate is estimated."""
ASSUMED_WORK_SECONDS = 3.0
"""Service time of a request whose latency is unknown."""
MAX_PLANS, MAX_STEPS = 16, 32
"""Limits of one search: simulated plans, and steps. A step with a known plan needs no simulation, but solves the
program once for each expert that requests wait for."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The wait of an expert's requests, in seconds: mean, its standard error over the seeds, 95th percentile, the share
    of requests that find it awake, and of those that reach `wait_timeout`, which count with this time."""

    mean_s: float
    standard_error_s: float
    p95_s: float
    awake: float
    expired: float
    requests_per_s: float

    def to_json(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 4) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class _DeviceGroup:
    """Devices that share servers, or a single one, and the key of each expert's server."""

    devices: tuple[SimulatedDevice, ...]
    experts: Mapping[str, str]

    @property
    def servers(self) -> dict[str, SimulatedServer]:
        """The servers by key, in the order of the experts."""
        by_key = {one.profile.key: one for device in self.devices for one in device.servers}
        return {key: by_key[key] for key in self.experts.values()}


class WaitModel:
    """Simulates the declared devices under plans, at `rate` requests a second in all."""

    def __init__(self, registry: Registry, *, load_times: LoadTimes, rate: float) -> None:
        assert registry.residency is not None
        self._residency, self.rate = registry.residency, rate
        self._groups = _device_groups(registry, load_times)

    def waits(self, problem: Problem, assignment: Assignment) -> dict[str, Wait]:
        """The waits under a plan, by expert that shares a device and that the plan calls."""
        calls = _calls(problem, assignment)
        found: dict[str, Wait] = {}
        for group in self._groups:
            here = {name: calls[name] for name in group.experts if name in calls}
            rates = {name: self.rate * float(problem.weights @ by_category) for name, by_category in here.items()}
            if any(rates.values()):
                found |= self._group_waits(group, problem, here, rates)
        return found

    def _group_waits(
        self, group: _DeviceGroup, problem: Problem, calls: Mapping[str, Array], rates: Mapping[str, float]
    ) -> dict[str, Wait]:
        names = [name for name, rate in rates.items() if rate > 0]
        count = int(np.clip(EVENT_BUDGET / len(group.servers), MIN_SIMULATED, SIMULATED_REQUESTS))
        samples: list[dict[str, Array]] = []
        for seed in range(SEEDS):
            requests, experts = _requests(group, problem, calls, rates, names, count=count, seed=seed)
            waits = self._simulate(group, requests, names)
            kept = np.arange(len(waits)) >= WARM_UP * count
            samples.append({name: waits[kept & (experts == place)] for place, name in enumerate(names)})
        timeout = self._residency.wait_timeout
        return {name: _wait([one[name] for one in samples], rates[name], timeout) for name in names}

    def _simulate(self, group: _DeviceGroup, requests: Sequence[SimulatedRequest], names: Sequence[str]) -> Array:
        pinned = [key for key, server in group.servers.items() if server.profile.pinned]
        simulation = Simulation(
            group.devices,
            requests,
            max_wait=self._residency.max_wait,
            forecast=Forecast({}, now=0.0),
            awake=dict.fromkeys([*pinned, *(group.experts[name] for name in names), *group.servers]),
        )
        return np.minimum(simulation.run().granted, self._residency.wait_timeout)


def wait_model(settings: Settings, registry: Registry, logged: LoggedUses | None) -> tuple[WaitModel | None, str]:
    """The model, or None with the reason why waits cannot be estimated; no reason where no experts share a device."""
    if registry.residency is None:
        return None, ""
    if logged is None or logged.called < MIN_LOGGED_REQUESTS:
        count = 0 if logged is None else logged.called
        return None, f"waits are not known: {count} of the {MIN_LOGGED_REQUESTS} logged requests that show the rate"
    load_times = LoadTimes(settings.home / LOAD_TIMES_FILE, registry.hosted_experts)
    return WaitModel(registry, load_times=load_times, rate=logged.typical_rate), ""


@dataclass(frozen=True, slots=True)
class WaitingPlan:
    """A plan with its waits by simulation, counted in `basis`. `simulated` plans were compared."""

    basis: PlanInputs
    assignment: Assignment
    waits: Mapping[str, Wait]
    simulated: int = 1


Solve = Callable[[PlanInputs], Assignment]
Node = tuple[float, int, frozenset[str], Assignment]
"""Quality below zero, number, experts that are excluded, and the best plan without these and without waits."""


def solve_with_waits(basis: PlanInputs, model: WaitModel, *, solve: Solve) -> WaitingPlan:
    """Solve a plan whose latencies count its waits. Raises ConfigError if none that is found keeps the limits."""
    search = _Search(basis, model, solve)
    if "mean_latency_ms" not in basis.problem.budget.rows():
        return search.judged(basis, solve(basis))
    best: WaitingPlan | None = None
    reached = -math.inf
    nodes: list[Node] = []
    search.push(nodes, frozenset(), solve(basis))
    for _ in range(MAX_STEPS):
        if not nodes or search.simulated >= MAX_PLANS or -nodes[0][0] <= reached:
            break
        _, _, excluded, assignment = heapq.heappop(nodes)
        found = search.judged(basis, assignment)
        if search.keeps_limit(found):
            best = found
            break
        for one in search.recounted(found, excluded):
            if search.keeps_limit(one) and search.quality(one.assignment) > reached:
                best, reached = one, search.quality(one.assignment)
        for name in found.waits:
            search.expand(nodes, excluded | {name})
    if best is None:
        raise search.refusal()
    return replace(search.priced(best), simulated=search.simulated)


class _Search:
    """The plans that `solve_with_waits` compares, each simulated once."""

    def __init__(self, basis: PlanInputs, model: WaitModel, solve: Solve) -> None:
        self._basis, self._model, self._solve = basis, model, solve
        self._waits: dict[tuple[str, ...], dict[str, Wait]] = {}
        self._seen: set[frozenset[str]] = set()
        self._pushed = 0
        self._least = math.inf

    @property
    def simulated(self) -> int:
        return len(self._waits)

    def judged(self, basis: PlanInputs, assignment: Assignment) -> WaitingPlan:
        """The plan with its waits."""
        if assignment.choice not in self._waits:
            self._waits[assignment.choice] = self._model.waits(self._basis.problem, assignment)
        waits = self._waits[assignment.choice]
        counted = with_waits(basis, {name: wait.mean_s for name, wait in waits.items()})
        return WaitingPlan(counted, assignment, waits)

    def keeps_limit(self, found: WaitingPlan) -> bool:
        latency = planned_use(found.basis.problem, found.assignment)["mean_latency_ms"]
        self._least = min(self._least, latency)
        return latency <= self._basis.problem.budget.rows()["mean_latency_ms"]

    def refusal(self) -> ConfigError:
        limit = self._basis.problem.budget.rows()["mean_latency_ms"]
        return ConfigError(
            f"budget: mean_latency_ms {limit:g} is kept by none of {self.simulated} plans once the waits for experts "
            f"that share devices are counted; the least is {self._least:.0f}: raise it or the devices' memory_gb, or "
            "declare fewer experts there"
        )

    def quality(self, assignment: Assignment) -> float:
        return planned_quality(self._basis.problem, assignment)

    def push(self, nodes: list[Node], excluded: frozenset[str], plan: Assignment) -> None:
        self._pushed += 1
        heapq.heappush(nodes, (-self.quality(plan), self._pushed, excluded, plan))

    def expand(self, nodes: list[Node], excluded: frozenset[str]) -> None:
        """Adds the best plan without some experts, if there is one within the budget."""
        if excluded not in self._seen:
            self._seen.add(excluded)
            with suppress(ConfigError, DataError):
                self.push(nodes, excluded, self._solve(_without(self._basis, excluded)))

    def recounted(self, found: WaitingPlan, excluded: frozenset[str]) -> list[WaitingPlan]:
        """The plan of the same experts that counts these waits, if there is one within the budget."""
        with suppress(ConfigError, DataError):
            return [self.judged(self._basis, self._solve(_without(found.basis, excluded)))]
        return []

    def priced(self, found: WaitingPlan) -> WaitingPlan:
        """The plan with prices that count its waits, if these lead to the same choice."""
        with suppress(ConfigError, DataError):
            again = self._solve(found.basis)
            if again.choice == found.assignment.choice:
                return replace(found, assignment=again)
        return found


def _without(basis: PlanInputs, excluded: Iterable[str]) -> PlanInputs:
    problem = basis.problem
    for name in excluded:
        problem = problem.without(name)
    return replace(basis, problem=problem)


def with_waits(basis: PlanInputs, waits: Mapping[str, float]) -> PlanInputs:
    """Return the inputs with waits, in seconds by expert, in the latencies of every column that calls the expert."""
    problem = basis.problem
    if not waits or problem.uses.latency_ms is None:
        return basis
    latency = problem.uses.latency_ms.copy()
    for expert, column, calls in problem.calls():
        latency[:, column] += 1000 * waits.get(problem.experts[expert], 0.0) * calls
    measured = basis.measured_uses
    if measured is not None:  # what later plans and comparisons start from
        columns = [problem.experts.index(name) for name in measured.experts]
        measured = replace(measured, latency_ms=latency[:, columns])
    return replace(
        basis, problem=replace(problem, uses=replace(problem.uses, latency_ms=latency)), measured_uses=measured
    )


def waits_report(found: WaitingPlan | None, reason: str, model: WaitModel | None) -> dict[str, Any] | None:
    """The expected waits by expert and category as JSON; None where no experts share a device."""
    if found is None or model is None:
        return {"unknown": reason} if reason else None
    problem, assignment = found.basis.problem, found.assignment
    means = {name: wait.mean_s for name, wait in found.waits.items()}
    by_category = {
        category: round(sum(means.get(name, 0.0) * float(by[row]) for name, by in _one(problem, expert).items()), 4)
        for row, (category, expert) in enumerate(zip(assignment.categories, assignment.choice, strict=True))
    }
    return {
        "unknown": "",
        "requests_per_s": round(model.rate, 6),
        "experts": {name: wait.to_json() for name, wait in found.waits.items()},
        "by_category": by_category,
        "simulated_plans": found.simulated,
    }


def _one(problem: Problem, column: str) -> dict[str, Array]:
    """The calls of each expert in a request to a column, by category."""
    number = problem.experts.index(column)
    return {problem.experts[expert]: calls for expert, at, calls in problem.calls() if at == number}


def _calls(problem: Problem, assignment: Assignment) -> dict[str, Array]:
    """The calls of each expert per request, by category, under a plan."""
    found: dict[str, Array] = {}
    for row, choice in enumerate(assignment.choice):
        for name, calls in _one(problem, choice).items():
            found.setdefault(name, np.zeros(len(problem.categories)))[row] += calls[row]
    return found


def _requests(
    group: _DeviceGroup,
    problem: Problem,
    calls: Mapping[str, Array],
    rates: Mapping[str, float],
    names: Sequence[str],
    *,
    count: int,
    seed: int,
) -> tuple[list[SimulatedRequest], NDArray[np.int64]]:
    """A Poisson trace of the group's share of the traffic, and the expert of each request by its place in `names`."""
    rng = np.random.default_rng(seed)
    shares = np.array([rates[name] for name in names])
    times = np.cumsum(rng.exponential(1 / shares.sum(), size=count))
    experts = rng.choice(len(names), size=count, p=shares / shares.sum())
    of_category = {}
    for place, name in enumerate(names):
        mix = problem.weights * calls[name]
        of_category[place] = mix / mix.sum()
    requests = []
    latency = problem.uses.latency_ms
    for at, place in zip(times.tolist(), experts.tolist(), strict=True):
        row = int(rng.choice(len(problem.categories), p=of_category[place]))
        known = np.nan if latency is None else latency[row, problem.experts.index(names[place])] / 1000
        work = float(rng.exponential(known if np.isfinite(known) and known > 0 else ASSUMED_WORK_SECONDS))
        requests.append(SimulatedRequest(at, group.experts[names[place]], problem.categories[row], work))
    return requests, experts


def _wait(samples: Sequence[Array], rate: float, timeout: float) -> Wait:
    """Summarises the waits of some seeds. An expert without requests in a seed counts by the other seeds."""
    all_waits = np.concatenate(samples)
    if not all_waits.size:
        return Wait(0.0, 0.0, 0.0, 1.0, 0.0, rate)
    means = [float(one.mean()) for one in samples if one.size]
    error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0
    return Wait(
        float(all_waits.mean()),
        error,
        float(np.percentile(all_waits, 95)),
        float((all_waits == 0).mean()),
        float((all_waits >= timeout).mean()),
        rate,
    )


def _device_groups(registry: Registry, load_times: LoadTimes) -> list[_DeviceGroup]:
    declared = registry.residency
    assert declared is not None
    servers: dict[str, list[SimulatedServer]] = {device.name: [] for device in declared.devices}
    experts: dict[str, dict[str, str]] = {device.name: {} for device in declared.devices}
    together = [{name} for name in servers]
    for members in group_by_server(registry.experts).values():
        server, names = _simulated(members, members[0].name, load_times), registry.devices_of(members[0])
        for name in names:
            servers[name].append(server)
            experts[name] |= {one.name: members[0].name for one in members}
        joined = set[str]().union(*(one for one in together if one.intersection(names)))
        together = [*(one for one in together if not one.intersection(names)), joined]
    host_memory = declared.sleep_memory_gb / len(declared.devices)
    devices = {one.name: SimulatedDevice(one.memory_gb, host_memory, servers[one.name]) for one in declared.devices}
    return [
        _DeviceGroup(
            tuple(device for name, device in devices.items() if name in one),
            {expert: key for name in devices if name in one for expert, key in experts[name].items()},
        )
        for one in together
    ]


def _simulated(group: Sequence[ExpertSpec], key: str, load_times: LoadTimes) -> SimulatedServer:
    profile = server_profile(group, key)
    measured, start = load_times.of(group[0].name), ENGINES[group[0].runtime].start_seconds
    wake = load_seconds(profile.memory, measured, "asleep")
    return SimulatedServer(profile, wake, load_seconds(profile.memory, measured, "stopped", start))
