"""A small world for the books and the policy: residents that take as long as they are told, requests that do too."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from coe.fleet.residency.forecast import Forecast
from coe.fleet.residency.scheduler import Scheduler
from coe.fleet.residency.state import Action, ServerProfile, held

LOAD, LEAVE = 2.0, 0.5


def ledger_of(
    residents: Sequence[ServerProfile],
    *,
    memory: float,
    host_memory: float = 0.0,
    max_wait: float = 10.0,
    now: float = 0.0,
) -> Scheduler:
    made = [(one, LOAD, LOAD) for one in residents]
    forecast = Forecast({}, now=now)
    return Scheduler(made, memory=memory, host_memory=host_memory, max_wait=max_wait, forecast=forecast)


@dataclass
class World:
    """Runs requests (arrival, resident's key, seconds of work) against a ledger, and checks what must always hold."""

    ledger: Scheduler
    waits: dict[int, float] = field(default_factory=dict)
    orders: list[Action] = field(default_factory=list)

    def run(self, requests: Sequence[tuple[float, str, float]]) -> None:
        events: list[tuple[float, int, str, int | str]] = []
        count = 0

        def at(when: float, kind: str, what: int | str) -> None:
            nonlocal count
            count += 1
            heapq.heappush(events, (when, count, kind, what))

        for ticket, (arrival, _, _) in enumerate(requests):
            at(arrival, "arrives", ticket)
        while events:
            now, _, kind, what = heapq.heappop(events)
            self._happens(kind, what, now, requests)
            orders, admitted, again_at = self.ledger.decide(now)
            self._check(orders, now)
            for ticket in admitted:
                self.waits[ticket] = now - requests[ticket][0]
                at(now + requests[ticket][2], "ends", ticket)
            for order in orders:
                at(now + (LOAD if order.verb == "wake" else LEAVE), order.verb, order.key)
            if again_at is not None:
                at(again_at, "look", "")

    def _happens(self, kind: str, what: int | str, now: float, requests: Sequence[tuple[float, str, float]]) -> None:
        if isinstance(what, int):
            if kind == "arrives":
                self.ledger.arrived(what, requests[what][1], now)
            else:
                self.ledger.ended(what, now)
        elif kind == "wake":
            self.ledger.woken(what, now)
        elif kind in ("sleep", "stop"):
            self.ledger.left(what, "asleep" if kind == "sleep" else "stopped")

    def _check(self, orders: Sequence[Action], now: float) -> None:
        state = self.ledger.state(now)
        self.orders += orders
        assert sum(map(held, state.seats)) <= state.memory + 1e-9
        assert (
            sum(seat.resident.host_memory for seat in state.seats if seat.tier == "asleep") <= state.host_memory + 1e-9
        )
        assert sum(seat.tier in ("waking",) for seat in state.seats) <= 1
        seats = {seat.key: seat for seat in state.seats}
        for order in orders:
            seat = seats[order.key]
            assert order.verb == "wake" or not (seat.in_flight or seat.resident.pinned), "left with work in flight"
