"""Baselines of the residency policy: first come first served, and an oracle forecast."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence

from residency_traces import Asked

from coe.fleet.residency.policy import Action, DeviceState, Schedule, ServerState


def recency(server: ServerState) -> float:
    """LRU."""
    return server.last_used


def frequency(server: ServerState) -> float:
    """LFU with dynamic aging: by the requests of late, older ones count less."""
    return server.rate


def in_order(state: DeviceState, *, strict: bool, evicts: Callable[[ServerState], float] = recency) -> Schedule:
    """Requests in the order of arrival; `strict`: none overtakes one whose expert is not awake. Idle servers leave in
    the order of `evicts`."""
    actions: list[Action] = []
    loading = any(server.tier in ("loading", "unloading") for server in state.servers)
    lines = ([(at, index) for at in server.waiting] for index, server in enumerate(state.servers) if server.waiting)
    for _, index in heapq.merge(*lines):
        server = state.servers[index]
        if server.tier == "awake":
            actions.append(Action("admit", server.key, 1))
            continue
        if not loading:
            actions += _load(server, state, busy={action.key for action in actions}, evicts=evicts)
            loading = True
        if strict:
            break
    return Schedule(tuple(actions))


def _load(
    target: ServerState, state: DeviceState, *, busy: set[str], evicts: Callable[[ServerState], float]
) -> list[Action]:
    """Wake it where there is room, else put the first idle ones to sleep; nothing while too few are."""
    free, host, orders = state.free, state.host_free, []
    idle = [s for s in state.servers if s.tier == "awake" and not s.in_flight and s.key not in busy]
    for server in sorted(idle, key=evicts):
        if free >= target.profile.memory:
            break
        free += server.device_memory
        asleep = server.profile.sleeps and host >= server.profile.host_memory
        host -= server.profile.host_memory if asleep else 0.0
        orders.append(Action("sleep" if asleep else "stop", server.key))
    if free < target.profile.memory:
        return []
    return orders or [Action("load", target.key)]


class Oracle:
    """A forecast that has seen the trace: the requests of the next `ahead` seconds, by expert."""

    def __init__(self, trace: Sequence[Asked], *, ahead: float) -> None:
        self._times = [asked.at for asked in trace]
        self._experts = [str(asked.expert) for asked in trace]
        self._ahead = ahead

    def record(self, expert: str, category: str, now: float) -> None:
        """It knows."""

    def rates(self, now: float) -> dict[str, float]:
        rates: dict[str, float] = {}
        for index in range(bisect_right(self._times, now), bisect_right(self._times, now + self._ahead)):
            expert = self._experts[index]
            rates[expert] = rates.get(expert, 0.0) + 1 / self._ahead
        return rates
