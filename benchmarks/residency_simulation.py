"""Simulates the scheduler of a device on a trace of requests: the real scheduler with simulated servers and time."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from coe.fleet.residency.policy import plan
from coe.fleet.residency.scheduler import Scheduler
from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerProfile

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
    """A request: its arrival in seconds since the beginning, the key of its server, and seconds of work."""

    at: float
    server: str
    work: float


class Simulation:
    """A device on one trace, in order of arrival. All servers are stopped at first, except those in `awake` and
    `asleep`, for which there must be memory."""

    def __init__(
        self,
        servers: Sequence[SimulatedServer],
        requests: Sequence[SimulatedRequest],
        *,
        memory: float,
        host_memory: float = 0.0,
        max_wait: float,
        policy: Callable[[DeviceState], Schedule] = plan,
        awake: Iterable[str] = (),
        asleep: Iterable[str] = (),
        slots: int = SLOTS,
    ) -> None:
        self._requests, self._slots = requests, slots
        self._servers = {one.profile.key: one for one in servers}
        profiles = [one.profile for one in servers]
        self.scheduler = Scheduler(profiles, memory=memory, host_memory=host_memory, max_wait=max_wait, policy=policy)
        for key in awake:
            self.scheduler.server_loaded(key, 0.0)
        for key in asleep:
            self.scheduler.server_unloaded(key, "asleep")
        self._events: list[tuple[float, int, Callable[[float], bool]]] = []
        self._count = 0
        self._next_check: float | None = None
        self._queues: dict[str, deque[int]] = {key: deque() for key in self._servers}
        self._busy = dict.fromkeys(self._queues, 0)
        self.granted = [-1.0] * len(requests)
        """Seconds from the arrival of each request until its server admits it."""
        self.begun = [-1.0] * len(requests)
        """Seconds until its server begins to work on it, which is later if the server's slots are taken."""

    @property
    def switches(self) -> int:
        return sum(server.switches for server in self.scheduler.servers.values())

    def run(self) -> Simulation:
        """Runs until all work is done."""
        for ticket, request in enumerate(self._requests):
            self._at(request.at, partial(self._arrived, ticket))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            if event(now):
                self._decide(now)
        assert min(self.begun, default=0.0) >= 0.0, "a request was not served"
        return self

    def _at(self, when: float, event: Callable[[float], bool]) -> None:
        """At a time, `event` happens; if it returns True, the scheduler decides then."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def _arrived(self, ticket: int, now: float) -> bool:
        self.scheduler.request_arrived(ticket, self._requests[ticket].server, now)
        return True

    def _decide(self, now: float) -> None:
        asleep = {key for key, server in self.scheduler.servers.items() if server.tier == "asleep"}
        orders, admitted, next_check = self.scheduler.decide(now)
        for ticket in admitted:
            request = self._requests[ticket]
            self.granted[ticket] = now - request.at
            self._queues[request.server].append(ticket)
            self._begin(request.server, now)
        for order in orders:
            self._order(order, now, asleep=order.key in asleep)
        if next_check is not None and next_check != self._next_check:
            self._at(next_check, lambda then: then == self._next_check)  # else a later decision has set another time
        self._next_check = next_check

    def _order(self, order: Action, now: float, *, asleep: bool) -> None:
        server = self._servers[order.key]
        if order.verb == "load":
            self._at(now + (server.wake_s if asleep else server.start_s), partial(self._loaded, order.key))
        else:
            took = server.sleep_s if order.verb == "sleep" else server.stop_s
            self._at(now + took, partial(self._unloaded, order))

    def _loaded(self, key: str, now: float) -> bool:
        self.scheduler.server_loaded(key, now)
        return True

    def _unloaded(self, order: Action, _: float) -> bool:
        self.scheduler.server_unloaded(order.key, "asleep" if order.verb == "sleep" else "stopped")
        return True

    def _begin(self, key: str, now: float) -> None:
        while self._queues[key] and self._busy[key] < self._slots:
            ticket = self._queues[key].popleft()
            self._busy[key] += 1
            self.begun[ticket] = now - self._requests[ticket].at
            self._at(now + self._requests[ticket].work, partial(self._done, ticket, key))

    def _done(self, ticket: int, key: str, now: float) -> bool:
        self._busy[key] -= 1
        self.scheduler.request_ended(ticket)
        self._begin(key, now)
        return True
