"""The scheduling policy of one device: `plan` maps a `DeviceState` to a `Schedule` of `Action`s. A pure function.

Requests for an awake server are admitted at once. Other requests wait, and the device loads one server at a time:

1. The server whose oldest waiting request would soon have waited `max_wait`; the longest overdue first. It may take
   memory even from busy servers: these drain (accept nothing new) and unload when they are idle.
2. Else the server of greatest *demand*, if memory is free, or if its demand is more than `DEMAND_MARGIN` times that of
   the idle servers that it would evict.

Demand is the number of requests that a server has or will get within `max_wait`: waiting, redirected to its stand-in,
in flight, and forecast. So a rare expert waits until its requests have gathered or grown old, and does not evict one
that is about to be needed. A small `max_wait` loads whatever is requested at once. The servers of least demand are
evicted first, ties by least recent use. A server with requests in flight is never unloaded.

When no waiting request needs a server, one with a forecast demand of at least 1 is prefetched. Serving whole queues
before a switch is the exhaustive discipline of polling systems; expected demand in place of recency is after Jain et
al. 2024 (arXiv 2412.01868) and CoServe (Suo et al. 2025, arXiv 2503.02354).

Memory is in GB, times in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Tier = Literal["awake", "draining", "loading", "unloading", "asleep", "stopped"]
"""draining: awake, but accepts no new request and unloads once it is idle; unloading: being put to sleep or stopped."""


@dataclass(frozen=True, slots=True)
class ServerProfile:
    """The memory that one server needs.

    It needs `memory` when awake; when asleep it needs `asleep_memory` on the device and `host_memory` of the host's
    RAM. A server that does not support sleep (`sleeps` is False) is stopped instead. A `pinned` server stays awake.
    """

    key: str
    memory: float
    pinned: bool = False
    sleeps: bool = False
    asleep_memory: float = 0.0
    host_memory: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server at one moment.

    `waiting` holds the arrival times of its waiting requests, oldest first. `redirected` counts the requests that its
    stand-in answered since it was last awake. `rate` is the forecast in requests a second, `load_seconds` the expected
    time until it would be awake. After a failed start it is not loaded before `retry_at`. `from_sleep` marks an
    unloading server that was asleep before.
    """

    profile: ServerProfile
    tier: Tier
    waiting: tuple[float, ...] = ()
    redirected: int = 0
    in_flight: int = 0
    rate: float = 0.0
    last_used: float = 0.0
    load_seconds: float = 1.0
    retry_at: float = 0.0
    from_sleep: bool = False

    @property
    def key(self) -> str:
        return self.profile.key

    @property
    def device_memory(self) -> float:
        """GB of the device that the server occupies or is about to occupy."""
        if self.tier == "stopped":
            return 0.0
        asleep = self.tier == "asleep" or (self.tier == "unloading" and self.from_sleep)
        return self.profile.asleep_memory if asleep else self.profile.memory


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device at one moment.

    `memory` and `host_memory` are budgets. `max_wait` is how long a request may wait so that later requests for the
    same expert can join it.
    """

    now: float
    memory: float
    host_memory: float
    max_wait: float
    servers: tuple[ServerState, ...]

    @property
    def free(self) -> float:
        """GB of the device that no server occupies or is about to occupy."""
        return self.memory - sum(server.device_memory for server in self.servers)

    @property
    def host_free(self) -> float:
        return self.host_memory - sum(s.profile.host_memory for s in self.servers if s.tier in ("asleep", "unloading"))


Verb = Literal["admit", "load", "drain", "resume", "sleep", "stop"]


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a schedule. `count` is for `admit`: how many waiting requests to admit, oldest first."""

    verb: Verb
    key: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The actions to take now, and when to plan again if nothing happens before (None: no need)."""

    actions: tuple[Action, ...] = ()
    next_check: float | None = None


DEMAND_MARGIN = 2.0
"""Factor by which the demand of a server that is not overdue must exceed that of the servers it evicts. Without it, two
servers of equal demand would evict each other all the time."""


def plan(state: DeviceState) -> Schedule:
    """Returns the actions for this moment. Call it again after carrying them out, and after every event."""
    actions = [Action("admit", s.key, len(s.waiting)) for s in state.servers if s.tier == "awake" and s.waiting]
    if any(s.tier in ("loading", "unloading") for s in state.servers):
        return Schedule(tuple(actions))  # the device loads one at a time: two would share its bandwidth
    target, evicted = _next_load(state)
    keys = {server.key for server in evicted}
    actions += [Action("resume", s.key) for s in state.servers if s.tier == "draining" and s.key not in keys]
    if target is None:
        return Schedule(tuple(actions), _next_check(state))
    if not evicted:
        return Schedule((*actions, Action("load", target.key)))
    return Schedule((*actions, *_evict(state, evicted)))


def demand(server: ServerState, state: DeviceState) -> float:
    """Requests that a server has or will get within `max_wait`."""
    return len(server.waiting) + server.redirected + server.in_flight + server.rate * state.max_wait


def _next_load(state: DeviceState) -> tuple[ServerState | None, Sequence[ServerState]]:
    """The server to load next, if any, and the servers to evict for it."""
    loadable = [s for s in state.servers if s.tier in ("asleep", "stopped") and s.retry_at <= state.now]
    due = [s for s in loadable if s.waiting and _load_due(s, state) <= state.now]
    for server in sorted(due, key=lambda s: _load_due(s, state)):
        if (evicted := _evictions(server, state, busy=True)) is not None:
            return server, evicted
    requested = [s for s in loadable if s.waiting or s.redirected]
    prefetched = [s for s in loadable if not (s.waiting or s.redirected) and demand(s, state) >= 1.0]
    for group in (requested, prefetched):
        for server in sorted(group, key=lambda s: -demand(s, state)):
            evicted = _evictions(server, state, busy=False)
            if evicted is not None and demand(server, state) > DEMAND_MARGIN * sum(demand(s, state) for s in evicted):
                return server, evicted
    return None, ()


def _load_due(server: ServerState, state: DeviceState) -> float:
    """When to begin loading so that the oldest waiting request does not wait longer than `max_wait`."""
    return server.waiting[0] + state.max_wait - server.load_seconds


def _evictions(target: ServerState, state: DeviceState, *, busy: bool) -> Sequence[ServerState] | None:
    """The servers to evict for `target`, least demand first; empty if memory is free, None if all are not enough."""
    free = state.free + target.device_memory
    chosen: list[ServerState] = []
    for server in sorted(_evictable(target, state, busy=busy), key=lambda s: _eviction_order(s, state)):
        if free >= target.profile.memory:
            break
        chosen.append(server)
        free += _freed_memory(server)
    return chosen if free >= target.profile.memory else None


def _evictable(target: ServerState, state: DeviceState, *, busy: bool) -> Iterator[ServerState]:
    for server in state.servers:
        if server.tier in ("awake", "draining") and not server.profile.pinned:
            if busy or not (server.in_flight or server.waiting):
                yield server
        elif server.tier == "asleep" and server is not target and server.profile.asleep_memory:
            yield server


def _eviction_order(server: ServerState, state: DeviceState) -> tuple[int, float, float]:
    """Draining servers first, sleeping ones last; then by demand and by time of last use."""
    rank = {"draining": 0, "awake": 1}.get(server.tier, 2)
    return rank, demand(server, state), server.last_used


def _freed_memory(server: ServerState) -> float:
    """GB that unloading the server frees."""
    asleep_memory = server.profile.asleep_memory if server.profile.sleeps and server.tier != "asleep" else 0.0
    return server.device_memory - asleep_memory


def _evict(state: DeviceState, evicted: Sequence[ServerState]) -> Iterator[Action]:
    """Unloads idle servers and drains busy ones. If the host's RAM has no space for a server, it is stopped. The
    sleeping server of least demand is then stopped too, if its demand is lower, so that there is space the next
    time."""
    host = state.host_free
    asleep = sorted(
        (s for s in state.servers if s.tier == "asleep" and s not in evicted), key=lambda s: demand(s, state)
    )
    for server in evicted:
        if server.in_flight or (server.tier == "awake" and server.waiting):  # this plan admits its waiting requests
            if server.tier == "awake":
                yield Action("drain", server.key)
        elif server.tier != "asleep" and server.profile.sleeps and host >= server.profile.host_memory:
            host -= server.profile.host_memory
            yield Action("sleep", server.key)
        else:
            yield Action("stop", server.key)
            if server.profile.sleeps and asleep and demand(asleep[0], state) < demand(server, state):
                yield Action("stop", asleep.pop(0).key)


def _next_check(state: DeviceState) -> float | None:
    """The next time at which a load becomes due or a failed server may be retried."""
    times = [_load_due(s, state) for s in state.servers if s.tier in ("asleep", "stopped") and s.waiting]
    times += [s.retry_at for s in state.servers if s.waiting]
    return min((time for time in times if time > state.now), default=None)
