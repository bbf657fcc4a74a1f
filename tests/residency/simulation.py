"""Simulates servers with fixed load times and requests of fixed length against a Scheduler."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from coe.fleet.residency.policy import Action, Scheduler, ServerProfile

LOAD_SECONDS, UNLOAD_SECONDS = 2.0, 0.5


def scheduler_of(
    profiles: Sequence[ServerProfile],
    *,
    memory: float,
    host_memory: float = 0.0,
    max_wait: float = 10.0,
) -> Scheduler:
    return Scheduler(profiles, memory=memory, host_memory=host_memory, max_wait=max_wait)


@dataclass
class Simulation:
    """Runs requests (arrival, server key, seconds of work) through a scheduler, and asserts its invariants at every
    event."""

    scheduler: Scheduler
    waits: dict[int, float] = field(default_factory=dict)
    orders: list[Action] = field(default_factory=list)

    def run(self, requests: Sequence[tuple[float, str, float]]) -> None:
        events: list[tuple[float, int, str, int | str]] = []
        count = 0
        planned: float | None = None

        def at(when: float, kind: str, what: int | str) -> None:
            nonlocal count
            count += 1
            heapq.heappush(events, (when, count, kind, what))

        for ticket, (arrival, _, _) in enumerate(requests):
            at(arrival, "arrives", ticket)
        while events:
            now, _, kind, what = heapq.heappop(events)
            if kind == "decide" and now != planned:
                continue  # a later decision has set another time
            self._happens(kind, what, now, requests)
            orders, admitted, next_check = self.scheduler.decide(now)
            self._check(orders, now)
            for ticket in admitted:
                self.waits[ticket] = now - requests[ticket][0]
                at(now + requests[ticket][2], "ends", ticket)
            for order in orders:
                at(now + (LOAD_SECONDS if order.verb == "load" else UNLOAD_SECONDS), order.verb, order.key)
            if next_check is not None and next_check != planned:
                at(next_check, "decide", "")
            planned = next_check

    def _happens(self, kind: str, what: int | str, now: float, requests: Sequence[tuple[float, str, float]]) -> None:
        if isinstance(what, int):
            if kind == "arrives":
                self.scheduler.request_arrived(what, requests[what][1], now)
            else:
                self.scheduler.request_ended(what)
        elif kind == "load":
            self.scheduler.server_loaded(what, now)
        elif kind in ("sleep", "stop"):
            self.scheduler.server_unloaded(what, "asleep" if kind == "sleep" else "stopped")

    def _check(self, orders: Sequence[Action], now: float) -> None:
        state = self.scheduler.state(now)
        self.orders += orders
        assert sum(server.device_memory for server in state.servers) <= state.memory + 1e-9
        assert (
            sum(server.profile.host_memory for server in state.servers if server.tier == "asleep")
            <= state.host_memory + 1e-9
        )
        loading = [server.from_sleep for server in state.servers if server.tier == "loading"]
        assert loading.count(True) <= 1, "two wakes at a time"
        assert loading.count(False) <= 1, "two starts at a time"
        servers = {server.key: server for server in state.servers}
        for order in orders:
            server = servers[order.key]
            assert order.verb == "load" or not (server.in_flight or server.profile.pinned), "left with work in flight"
