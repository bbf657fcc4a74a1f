"""Baselines of the residency policy: LRU, LRU ahead and llama-swap's."""

from __future__ import annotations

from collections.abc import Collection

from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerState


def in_order(state: DeviceState) -> Schedule:
    """LRU: loads are in the order of arrival, and the idle server used longest ago leaves. A request for an awake
    server does not wait for those before it."""
    actions: list[Action] = []
    loading = any(server.tier in ("loading", "unloading") for server in state.servers)
    for server in _asked(state):
        if server.tier == "awake":
            actions.append(Action("admit", server.key))
        elif not loading:
            actions += _load(server, state, staying=_wanted(state))
            loading = True
    return Schedule(tuple(actions))


def _asked(state: DeviceState) -> list[ServerState]:
    """The servers that requests wait for, in the order of their oldest."""
    return sorted((one for one in state.servers if one.waiting), key=lambda one: next(iter(one.waiting.values())))


def _wanted(state: DeviceState) -> set[str]:
    return {server.key for server in state.servers if server.waiting}


def _load(target: ServerState, state: DeviceState, *, staying: Collection[str]) -> list[Action]:
    """Wake it where there is room, else put the first idle ones to sleep; nothing while too few are."""
    orders = _leave(target.profile.memory - state.free, state, staying=staying)
    return [Action("load", target.key)] if orders == [] else orders or []


def _leave(lacking: float, state: DeviceState, *, staying: Collection[str]) -> list[Action] | None:
    """Idle servers other than `staying` leave until `lacking` GB are free; None if too few are idle."""
    host, orders = state.host_free, []
    idle = [s for s in state.servers if s.tier == "awake" and not s.in_flight and s.key not in staying]
    for server in sorted(idle, key=lambda s: s.last_used):
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
    staying = _wanted(state)
    for server in _asked(state):
        if server.tier == "awake":
            actions.append(Action("admit", server.key))
        elif server.tier in ("asleep", "stopped") and ahead < AHEAD:
            ahead += 1
            if not loading and server.profile.memory <= free:
                actions.append(Action("load", server.key))
                loading = True
            leaving = _leave(server.profile.memory - available, state, staying=staying)
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
    actions: list[Action] = []
    for target in _asked(state):
        if target.tier == "awake":
            actions.append(Action("admit", target.key))
            continue
        others = [server for server in state.servers if server.tier not in ("stopped", "asleep")]
        if not others:
            actions.append(Action("load", target.key))
        admitted = {action.key for action in actions}
        idle = (one for one in others if one.tier == "awake" and not one.in_flight and one.key not in admitted)
        actions += [Action("stop", one.key) for one in idle]
        break
    return Schedule(tuple(actions))
