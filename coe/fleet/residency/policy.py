"""The scheduling policy of one device: `plan` maps a `DeviceState` to a `Schedule` of `Action`s. A pure function.

Requests for an awake server are admitted at once. Other requests wait until their server is loaded; one load serves all
that wait for it.

1. *Order*: by urgency, the sum of the cubed waits of a server's requests. Long waits count most, then long queues, so
   every request has its turn (Longest Wait First with a convex cost: Van Mieghem 1995; Chekuri, Im and Moseley 2009).
2. *Eviction*: idle servers leave, the one used longest ago first (LRU). Then sleeping servers are stopped for the
   memory that they keep. A server with requests in flight never leaves. But once a request for the most urgent server
   has waited for `max_wait` seconds, busy servers admit no more requests until they are idle and leave for it.
3. *Ahead*: servers leave for the next `AHEAD` loads while another one is under way.
4. *One load at a time*, since two would share its bandwidth. But servers that sleep in RAM wake during a start, one at
   a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from coe.fleet.residency.state import Action, DeviceState, Schedule, ServerState, Verb

AHEAD = 2
"""Servers that room is made for at a time. With more, memory stays empty for long before it is used."""
_PRECISION = 1e-9
"""GB below which a lack of memory is a rounding error."""


def plan(device: DeviceState) -> Schedule:
    """Returns the actions for this moment. Call it again after carrying them out, and after every event."""
    wanted = [s for s in device.servers if s.tier in ("asleep", "stopped") and (s.waiting or s.redirected is not None)]
    next_check = min(_checks(wanted, device), default=None)
    loadable = [server for server in wanted if server.retry_at <= device.now]
    leaving = dict[str, Verb]()
    targets = _targets(loadable, device, leaving) if loadable else []
    leaving |= _displaced_sleeper(device, leaving)
    actions = []
    for server in device.servers:
        if server.key in leaving and not server.in_flight:
            actions.append(Action(leaving[server.key], server.key))
        elif server.tier == "awake" and server.waiting and server.key not in leaving:
            actions.append(Action("admit", server.key))
    free, loading = device.free, [server.from_sleep for server in device.servers if server.tier == "loading"]
    fits = (
        s for s in targets if _missing(s) <= free + _PRECISION and (not loading or (_in_ram(s) and not any(loading)))
    )
    if (target := next(fits, None)) is not None:
        actions.append(Action("load", target.key))
    return Schedule(tuple(actions), next_check)


def _checks(wanted: Iterable[ServerState], device: DeviceState) -> Iterable[float]:
    """The times from which a failed server may start again, and busy servers leave for a request."""
    times = (max(server.arrivals[0] + device.max_wait, server.retry_at) for server in wanted)
    return (at for at in times if at > device.now)


def _targets(loadable: Sequence[ServerState], device: DeviceState, leaving: dict[str, Verb]) -> list[ServerState]:
    """The servers to load next, in order. Adds those that leave for them to `leaving`."""
    urgency = {server.key: sum([(device.now - at) ** 3 for at in server.arrivals]) for server in loadable}
    first = max(loadable, key=lambda server: urgency[server.key])
    late = device.now >= first.arrivals[0] + device.max_wait
    starting = any(server.tier == "loading" for server in device.servers)  # what sleeps in RAM may wake beside it
    order = sorted(loadable, key=lambda s: (not (late and s is first), starting and not _in_ram(s), -urgency[s.key]))
    available = device.free + sum(_freed(s, sleep=s.profile.sleeps) for s in device.servers if s.tier == "unloading")
    host = device.host_free
    idle, sleeping, busy = _may_leave(device)
    targets: list[ServerState] = []
    for server in order:
        if len(targets) == AHEAD:
            break
        if server.key in leaving:
            continue
        last_resort = [*sleeping, *busy] if late and server is first else sleeping if not targets else []
        victims = [one for one in [*idle, *last_resort] if one.key not in leaving and one is not server]
        leaves = _make_room(victims, _missing(server) - available, host)
        if leaves is None:
            continue
        targets.append(server)
        leaving |= {one.key: verb for one, verb in leaves}
        available += sum(_freed(one, sleep=verb == "sleep") for one, verb in leaves) - _missing(server)
        host -= sum(one.profile.host_memory for one, verb in leaves if verb == "sleep")
    return targets


def _may_leave(device: DeviceState) -> tuple[list[ServerState], list[ServerState], list[ServerState]]:
    """The servers that may leave, used longest ago first: idle ones, sleeping ones that keep memory (those that
    requests wait for last), and busy ones."""
    by_use = sorted((s for s in device.servers if not s.profile.pinned), key=lambda s: s.last_used)
    awake = [server for server in by_use if server.tier == "awake"]
    idle = [server for server in awake if not (server.in_flight or server.waiting)]
    sleeping = [server for server in by_use if server.tier == "asleep" and server.profile.asleep_memory]
    busy = [server for server in awake if server.in_flight or (server.waiting and not server.fresh)]
    return idle, sorted(sleeping, key=lambda server: bool(server.waiting)), busy


def _make_room(
    victims: Sequence[ServerState], lacking: float, host_free: float
) -> list[tuple[ServerState, Verb]] | None:
    """The first victims that free `lacking` GB; None if all are not enough. They sleep where the host has RAM; if what
    they keep while asleep is needed too, they are stopped."""
    for may_sleep in (True, False):
        leaves, missing, host = list[tuple[ServerState, Verb]](), lacking, host_free
        for server in victims:
            if missing <= _PRECISION:
                break
            sleeps = may_sleep and server.tier == "awake" and server.profile.sleeps
            sleeps = sleeps and server.profile.host_memory <= host
            leaves.append((server, "sleep" if sleeps else "stop"))
            missing -= _freed(server, sleep=sleeps)
            host -= server.profile.host_memory if sleeps else 0.0
        if missing <= _PRECISION:
            return leaves
    return None


def _displaced_sleeper(device: DeviceState, leaving: Mapping[str, Verb]) -> dict[str, Verb]:
    """Stop the sleeping server used longest ago instead of a later used one that found RAM full, so that the next one
    may sleep."""
    stopped = [s for s in device.servers if leaving.get(s.key) == "stop" and s.tier == "awake" and s.profile.sleeps]
    sleepers = (s for s in device.servers if _in_ram(s) and not s.waiting and s.key not in leaving)
    oldest = min(sleepers, key=lambda server: server.last_used, default=None)
    displaced = oldest is not None and any(oldest.last_used < server.last_used for server in stopped)
    return {oldest.key: "stop"} if oldest is not None and displaced else {}


def _freed(server: ServerState, *, sleep: bool) -> float:
    """GB that unloading the server frees."""
    keeps = sleep and not (server.tier == "asleep" or server.from_sleep)
    return server.device_memory - (server.profile.asleep_memory if keeps else 0.0)


def _missing(server: ServerState) -> float:
    """GB that the server needs beyond what it occupies."""
    return server.profile.memory - server.device_memory


def _in_ram(server: ServerState) -> bool:
    """It sleeps with its weights in RAM, so that its wake and a start from disk do not slow each other."""
    return server.tier == "asleep" and server.profile.host_memory > 0
