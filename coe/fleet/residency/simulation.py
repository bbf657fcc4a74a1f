"""Simulates the schedulers of devices on a trace of requests: the real schedulers with simulated servers and time.

The benchmarks compare policies with it. A run takes about 0.1 ms per request and
candidate server, and always terminates: simulated servers do not fail, so every request is served.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.placement import Placement, device_choices, spread
from coe.fleet.residency.policy import plan
from coe.fleet.residency.scheduler import Scheduler
from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerProfile, Tier

SLOTS = 8
"""Requests that one server works on at a time; more queue at the server."""


@dataclass(frozen=True, slots=True)
class SimulatedServer:
    """A server, and its seconds to awake from asleep and from stopped, to asleep and to stopped."""

    profile: ServerProfile
    wake_s: float
    start_s: float
    sleep_s: float = 0.5
    stop_s: float = 2.0


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """A device: its budgets in GB, and the servers that may use it. A server of several devices uses one at a time."""

    memory: float
    host_memory: float
    servers: Sequence[SimulatedServer]


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """A request: its arrival in seconds since the beginning, the key of its server, its category, and seconds of
    work."""

    at: float
    server: str
    category: str
    work: float


class Simulation:
    """Devices on one trace, in order of arrival. All servers are stopped at first, except those in `awake` and
    `asleep`, as long as there is memory for them."""

    def __init__(
        self,
        devices: Sequence[SimulatedDevice],
        requests: Sequence[SimulatedRequest],
        *,
        max_wait: float,
        forecast: Any = None,
        policy: Callable[[DeviceState], Schedule] = plan,
        awake: Iterable[str] = (),
        asleep: Iterable[str] = (),
        slots: int = SLOTS,
    ) -> None:
        self._requests, self._slots = requests, slots
        self._servers = {one.profile.key: one for device in devices for one in device.servers}
        choices = device_choices([one.profile.key for one in device.servers] for device in devices)
        sizes = {key: self._servers[key].profile.memory for key in dict.fromkeys([*awake, *self._servers])}
        homes, _ = spread(sizes, choices, [device.memory for device in devices])
        forecast = forecast or Forecast({}, now=0.0)
        self._schedulers = [
            Scheduler(
                [(s.profile, s.wake_s, s.start_s) for s in device.servers if homes[s.profile.key] == number],
                memory=device.memory,
                host_memory=device.host_memory,
                max_wait=max_wait,
                forecast=forecast,
                policy=policy,
            )
            for number, device in enumerate(devices)
        ]
        self._placement = Placement(self._schedulers, choices)
        self._rest(awake, asleep)
        self._events: list[tuple[float, int, Callable[[float], int | None]]] = []
        self._count = 0
        self._next_checks: list[float | None] = [None] * len(devices)
        self._queues: dict[str, deque[int]] = {key: deque() for key in self._servers}
        self._busy = dict.fromkeys(self._queues, 0)
        self.granted = [-1.0] * len(requests)
        """Seconds from the arrival of each request until its server admits it."""
        self.begun = [-1.0] * len(requests)
        """Seconds until its server begins to work on it, which is later if the server's slots are taken."""

    def _rest(self, awake: Iterable[str], asleep: Iterable[str]) -> None:
        for key in awake:
            scheduler = self._placement.scheduler(key)
            if scheduler.state(0.0).free >= self._servers[key].profile.memory:
                scheduler.server_loaded(key, 0.0)
        for key in asleep:
            profile, scheduler = self._servers[key].profile, self._placement.scheduler(key)
            free = scheduler.state(0.0)
            if profile.sleeps and free.host_free >= profile.host_memory and free.free >= profile.asleep_memory:
                scheduler.server_unloaded(key, "asleep")

    @property
    def switches(self) -> int:
        return sum(scheduler.switches for scheduler in self._schedulers)

    def run(self) -> Simulation:
        """Runs until all work is done."""
        for ticket, request in enumerate(self._requests):
            self._at(request.at, partial(self._request_arrived, ticket))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            if (number := event(now)) is not None:
                for device in sorted({number} | self._placement.settle(now)):
                    self._carry_out(device, now)
        assert min(self.begun, default=0.0) >= 0.0, "a request was not served"
        return self

    def _at(self, when: float, event: Callable[[float], int | None]) -> None:
        """At a time, `event` happens and returns the number of the device that decides then."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _request_arrived(self, ticket: int, now: float) -> int:
        request = self._requests[ticket]
        scheduler = self._placement.scheduler(request.server)
        scheduler.request_arrived(ticket, request.server, now, category=request.category)
        return self._placement.device(request.server)

    def _check(self, number: int, now: float) -> int | None:
        """The policy wanted to decide again now, unless a later decision has set another time."""
        return number if now == self._next_checks[number] else None

    def _carry_out(self, number: int, now: float) -> None:
        scheduler = self._schedulers[number]
        before = {key: scheduler.tier(key) for key in scheduler.keys}
        orders, admitted, next_check = scheduler.decide(now)
        next_check = self._placement.next_check(number, next_check, now)
        for ticket in admitted:
            request = self._requests[ticket]
            self.granted[ticket] = now - request.at
            self._queues[request.server].append(ticket)
            self._begin(request.server, now)
        for order in orders:
            self._order(order, before[order.key], now)
        if next_check is not None and next_check != self._next_checks[number]:
            self._at(next_check, partial(self._check, number))
        self._next_checks[number] = next_check

    def _order(self, order: Action, tier: str, now: float) -> None:
        server = self._servers[order.key]
        if order.verb == "load":
            took = server.wake_s if tier == "asleep" else server.start_s
            self._at(now + took, partial(self._loaded, order.key))
        elif order.verb == "sleep":
            self._at(now + server.sleep_s, lambda _: self._unloaded(order.key, "asleep"))
        else:
            self._at(now + server.stop_s, lambda _: self._unloaded(order.key, "stopped"))

    def _loaded(self, key: str, now: float) -> int:
        self._placement.scheduler(key).server_loaded(key, now)
        return self._placement.device(key)

    def _unloaded(self, key: str, tier: Tier) -> int:
        self._placement.scheduler(key).server_unloaded(key, tier)
        return self._placement.device(key)

    def _begin(self, key: str, now: float) -> None:
        while self._queues[key] and self._busy[key] < self._slots:
            ticket = self._queues[key].popleft()
            self._busy[key] += 1
            self.begun[ticket] = now - self._requests[ticket].at
            self._at(now + self._requests[ticket].work, partial(self._done, ticket, key))

    def _done(self, ticket: int, key: str, now: float) -> int:
        self._busy[key] -= 1
        self._placement.scheduler(key).request_ended(ticket, now)
        self._begin(key, now)
        return self._placement.device(key)
