"""Simulates the scheduler of one device on a trace of requests: only servers and time are not the real ones.

`coe plan` estimates waits with it, and the benchmarks compare policies. A run takes some 0.1 ms a request and a server
that it has to weigh, and ends: every request is served, since simulated servers do not fail.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from coe.fleet.residency.policy import Action, DeviceState, Schedule, ServerProfile, plan
from coe.fleet.residency.scheduler import Forecast, Scheduler

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
class SimulatedRequest:
    """A request: its arrival in seconds since the beginning, the key of its server, its category, and seconds of
    work."""

    at: float
    server: str
    category: str
    work: float


def _check(_now: float) -> None:
    """The event of a time at which the policy wants to decide again."""


class Simulation:
    """One device on one trace, in order of arrival. All servers are stopped at first, except those in `awake` and
    `asleep`, as long as there is memory for them."""

    def __init__(
        self,
        servers: Sequence[SimulatedServer],
        requests: Sequence[SimulatedRequest],
        *,
        memory: float,
        host_memory: float,
        max_wait: float,
        forecast: Any = None,
        policy: Callable[[DeviceState], Schedule] = plan,
        awake: Iterable[str] = (),
        asleep: Iterable[str] = (),
        slots: int = SLOTS,
    ) -> None:
        self._requests, self._slots = requests, slots
        self._servers = {one.profile.key: one for one in servers}
        self._scheduler = Scheduler(
            [(one.profile, one.wake_s, one.start_s) for one in servers],
            memory=memory,
            host_memory=host_memory,
            max_wait=max_wait,
            forecast=forecast or Forecast({}, now=0.0),
            policy=policy,
        )
        self._rest(awake, asleep)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        self._next_check: float | None = None
        self._queues: dict[str, deque[int]] = {key: deque() for key in self._servers}
        self._busy = dict.fromkeys(self._queues, 0)
        self.granted = [-1.0] * len(requests)
        """Seconds from the arrival of each request until its server admits it."""
        self.begun = [-1.0] * len(requests)
        """Seconds until its server begins to work on it, which is later if the server's slots are taken."""

    def _rest(self, awake: Iterable[str], asleep: Iterable[str]) -> None:
        for key in awake:
            if self._scheduler.state(0.0).free >= self._servers[key].profile.memory:
                self._scheduler.server_loaded(key, 0.0)
        for key in asleep:
            profile = self._servers[key].profile
            free = self._scheduler.state(0.0)
            if profile.sleeps and free.host_free >= profile.host_memory and free.free >= profile.asleep_memory:
                self._scheduler.server_unloaded(key, "asleep")

    @property
    def switches(self) -> int:
        return self._scheduler.switches

    def run(self) -> Simulation:
        """Runs to the end of all work."""
        for ticket, request in enumerate(self._requests):
            self._at(request.at, partial(self._request_arrived, ticket))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            if event is _check and now != self._next_check:
                continue  # a later decision has set another
            event(now)
            self._carry_out(now)
        assert min(self.begun, default=0.0) >= 0.0, "a request was not served"
        return self

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _request_arrived(self, ticket: int, now: float) -> None:
        request = self._requests[ticket]
        self._scheduler.request_arrived(ticket, request.server, now, category=request.category)

    def _carry_out(self, now: float) -> None:
        before = {key: self._scheduler.tier(key) for key in self._servers}
        orders, admitted, next_check = self._scheduler.decide(now)
        for ticket in admitted:
            request = self._requests[ticket]
            self.granted[ticket] = now - request.at
            self._queues[request.server].append(ticket)
            self._begin(request.server, now)
        for order in orders:
            self._order(order, before[order.key], now)
        if next_check is not None and next_check != self._next_check:
            self._at(next_check, _check)
        self._next_check = next_check

    def _order(self, order: Action, tier: str, now: float) -> None:
        server = self._servers[order.key]
        if order.verb == "load":
            took = server.wake_s if tier == "asleep" else server.start_s
            self._at(now + took, partial(self._scheduler.server_loaded, order.key))
        elif order.verb == "sleep":
            self._at(now + server.sleep_s, lambda _: self._scheduler.server_unloaded(order.key, "asleep"))
        else:
            self._at(now + server.stop_s, lambda _: self._scheduler.server_unloaded(order.key, "stopped"))

    def _begin(self, key: str, now: float) -> None:
        while self._queues[key] and self._busy[key] < self._slots:
            ticket = self._queues[key].popleft()
            self._busy[key] += 1
            self.begun[ticket] = now - self._requests[ticket].at
            self._at(now + self._requests[ticket].work, partial(self._done, ticket, key))

    def _done(self, ticket: int, key: str, now: float) -> None:
        self._busy[key] -= 1
        self._scheduler.request_ended(ticket, now)
        self._begin(key, now)
