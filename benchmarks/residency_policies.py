"""Baselines of the residency policy: first come first served, and an oracle forecast."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence

from residency_traces import Asked

from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerState


def recency(server: ServerState) -> float:
    """LRU."""
    return server.last_used


def frequency(server: ServerState) -> float:
    """LFU with dynamic aging: the decayed rate of recent requests."""
    return server.rate


def in_order(state: DeviceState, *, strict: bool, evicts: Callable[[ServerState], float] = recency) -> Schedule:
    """Serve requests in the order of arrival. With `strict`, no request overtakes one whose expert is not awake. Idle
    servers are evicted in the order of `evicts`."""
    actions: list[Action] = []
    loading = any(server.tier in ("loading", "unloading") for server in state.servers)
    lines = ([(at, index) for at in server.waiting] for index, server in enumerate(state.servers) if server.waiting)
    for _, index in heapq.merge(*lines):
        server = state.servers[index]
        if server.tier == "awake":
            actions.append(Action("admit", server.key, 1))
            continue
        if not loading:
            staying = {action.key for action in actions} if strict else _wanted(state)
            actions += _load(server, state, evicts=evicts, staying=staying)
            loading = True
        if strict:
            break
    return Schedule(tuple(actions))


def _wanted(state: DeviceState) -> set[str]:
    return {server.key for server in state.servers if server.waiting}


def _load(
    target: ServerState, state: DeviceState, *, evicts: Callable[[ServerState], float], staying: Collection[str]
) -> list[Action]:
    """Wake it where there is room, else put the first idle ones to sleep; nothing while too few are."""
    orders = _leave(target.profile.memory - state.free, state, evicts=evicts, staying=staying)
    return [Action("load", target.key)] if orders == [] else orders or []


def _leave(
    lacking: float, state: DeviceState, *, evicts: Callable[[ServerState], float], staying: Collection[str]
) -> list[Action] | None:
    """Idle servers other than `staying` leave until `lacking` GB are free; None if too few are idle."""
    host, orders = state.host_free, []
    idle = [s for s in state.servers if s.tier == "awake" and not s.in_flight and s.key not in staying]
    for server in sorted(idle, key=evicts):
        if lacking <= 0:
            break
        lacking -= server.device_memory
        asleep = server.profile.sleeps and host >= server.profile.host_memory
        host -= server.profile.host_memory if asleep else 0.0
        orders.append(Action("sleep" if asleep else "stop", server.key))
    return orders if lacking <= 0 else None


AHEAD = 2
"""Loads that LRU ahead makes room for at a time."""


def in_order_ahead(state: DeviceState) -> Schedule:
    """LRU whose loads overlap with unloading: in the order of arrival, none waits for one whose expert is not
    awake, and idle servers leave for the next AHEAD loads while another one is under way."""
    actions: list[Action] = []
    loading, ahead = any(server.tier == "loading" for server in state.servers), 0
    free = state.free
    available = free + sum(server.device_memory for server in state.servers if server.tier == "unloading")
    lines = ([(at, index) for at in server.waiting] for index, server in enumerate(state.servers) if server.waiting)
    seen: set[str] = set()
    staying = _wanted(state)
    for _, index in heapq.merge(*lines):
        server = state.servers[index]
        if server.tier == "awake":
            actions.append(Action("admit", server.key, 1))
        elif server.tier in ("asleep", "stopped") and server.key not in seen and ahead < AHEAD:
            ahead += 1
            seen.add(server.key)
            if not loading and server.profile.memory <= free:
                actions.append(Action("load", server.key))
                loading = True
            leaving = _leave(server.profile.memory - available, state, evicts=recency, staying=staying)
            if leaving is None:
                ahead = AHEAD
                continue
            keys = {action.key for action in leaving}
            available += sum(one.device_memory for one in state.servers if one.key in keys) - server.profile.memory
            staying |= keys
            actions += leaving
    return Schedule(tuple(actions))


def swap(state: DeviceState) -> Schedule:
    """llama-swap's default: one server at a time, requests in the order of arrival. A request for another one waits
    until the running one has answered what it admitted; that one is stopped, never put to sleep."""
    lines = ([(at, index) for at in server.waiting] for index, server in enumerate(state.servers) if server.waiting)
    actions: list[Action] = []
    for _, index in heapq.merge(*lines):
        target = state.servers[index]
        if target.tier == "awake":
            actions.append(Action("admit", target.key, 1))
            continue
        others = [server for server in state.servers if server.tier not in ("stopped", "asleep")]
        if not others:
            actions.append(Action("load", target.key))
        admitted = {action.key for action in actions}
        idle = (one for one in others if one.tier == "awake" and not one.in_flight and one.key not in admitted)
        actions += [Action("stop", one.key) for one in idle]
        break
    return Schedule(tuple(actions))


class Oracle:
    """A forecast that has seen the trace: the requests of the next `ahead` seconds, by expert."""

    def __init__(self, trace: Sequence[Asked], *, ahead: float) -> None:
        self._times = [asked.at for asked in trace]
        self._experts = [str(asked.expert) for asked in trace]
        self._ahead = ahead

    def record(self, expert: str, category: str, now: float) -> None:
        """The oracle knows the next requests of the trace."""

    def period(self, now: float) -> float:
        """Infinite, because an arriving request adds nothing to the oracle's forecast."""
        return math.inf

    def rates(self, now: float) -> dict[str, float]:
        rates: dict[str, float] = {}
        for index in range(bisect_right(self._times, now), bisect_right(self._times, now + self._ahead)):
            expert = self._experts[index]
            rates[expert] = rates.get(expert, 0.0) + 1 / self._ahead
        return rates
