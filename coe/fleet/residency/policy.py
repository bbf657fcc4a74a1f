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

One device as its scheduling policy sees it: servers with their tiers and requests, and the actions on them.

Memory is in GB, times in seconds of a monotonic clock.

The scheduler of one device: keeps the states of its servers, and turns the policy's plan into orders.

It carries out nothing itself: `Residency` reports events to it and carries out its orders. It has no clock; callers
pass the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Tier = Literal["awake", "loading", "unloading", "asleep", "stopped"]
"""unloading: being put to sleep or stopped."""

Ticket = int
"""Identifies one request from its arrival to its end."""


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


@dataclass(slots=True)
class ServerState:
    """One server. Its `Scheduler` keeps it up to date; the policy reads it.

    `waiting` are its waiting requests with their arrival times, oldest first; `redirected` is the arrival of the first
    request that its stand-in answered since it was last awake. `last_used` is the time of the latest admission. After a
    failed start it is not loaded before `retry_at`. `from_sleep` marks a loading or unloading server that was asleep
    before; `loading_since` is of a load under way, and `load_seconds` is what the latest one took.
    """

    profile: ServerProfile
    tier: Tier = "stopped"
    waiting: dict[Ticket, float] = field(default_factory=dict)
    redirected: float | None = None
    in_flight: set[Ticket] = field(default_factory=set)
    last_used: float = -math.inf
    retry_at: float = -math.inf
    from_sleep: bool = False
    loading_since: float | None = None
    load_seconds: float | None = None
    switches: int = 0
    fresh: bool = False
    """It has admitted no request since it was loaded, so those that wait for it have their turn before it leaves."""

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

    @property
    def arrivals(self) -> list[float]:
        """Arrival times of the requests that ask for a load, oldest first."""
        redirected = [] if self.redirected is None else [self.redirected]
        return sorted([*redirected, *self.waiting.values()]) if redirected else list(self.waiting.values())


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device at one moment. `memory` and `host_memory` are budgets. From `max_wait` seconds on, a waiting request
    makes busy servers leave."""

    now: float
    memory: float
    host_memory: float
    max_wait: float
    servers: Sequence[ServerState]

    @property
    def free(self) -> float:
        """GB of the device that no server occupies or is about to occupy."""
        return self.memory - sum(server.device_memory for server in self.servers)

    @property
    def host_free(self) -> float:
        return self.host_memory - sum(s.profile.host_memory for s in self.servers if s.tier in ("asleep", "unloading"))


Verb = Literal["admit", "load", "sleep", "stop"]


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a schedule. `admit` admits all waiting requests of a server."""

    verb: Verb
    key: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """The actions to take now, and when to plan again if nothing happens before (None: no need)."""

    actions: tuple[Action, ...] = ()
    next_check: float | None = None


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


class Scheduler:
    """Call `decide` after every event. Orders to load, sleep and stop are under way until `server_loaded`,
    `server_unloaded` or `server_failed` reports the outcome."""

    def __init__(
        self,
        servers: Iterable[ServerProfile],
        *,
        memory: float,
        host_memory: float,
        max_wait: float,
        policy: Callable[[DeviceState], Schedule] = plan,
    ) -> None:
        self.servers = {profile.key: ServerState(profile) for profile in servers}
        self._budget = (memory, host_memory, max_wait)
        self._policy = policy
        self._server_of: dict[Ticket, ServerState] = {}

    def request_arrived(self, ticket: Ticket, key: str, now: float) -> None:
        """A request for a server arrived; it waits until it is admitted."""
        server = self._server_of[ticket] = self.servers[key]
        server.waiting[ticket] = now

    def request_redirected(self, key: str, now: float) -> None:
        """A request arrived for a server that is not awake; its stand-in answers it."""
        server = self.servers[key]
        server.redirected = now if server.redirected is None else server.redirected

    def request_ended(self, ticket: Ticket) -> None:
        """A request ended, or no longer waits. Unknown tickets are ignored."""
        if (server := self._server_of.pop(ticket, None)) is not None:
            server.waiting.pop(ticket, None)
            server.in_flight.discard(ticket)

    def server_loaded(self, key: str, now: float) -> None:
        """A server is awake."""
        server = self.servers[key]
        if server.loading_since is not None:
            server.load_seconds = now - server.loading_since
        server.tier, server.from_sleep, server.loading_since, server.redirected = "awake", False, None, None
        server.last_used, server.fresh = now, True

    def server_unloaded(self, key: str, tier: Literal["asleep", "stopped"]) -> None:
        self.servers[key].tier = tier

    def server_failing(self, key: str) -> None:
        """A server is down and is being ended; `server_failed` follows."""
        self.servers[key].from_sleep, self.servers[key].tier = False, "unloading"

    def server_failed(self, key: str, *, retry_at: float, refuse: bool) -> list[Ticket]:
        """A server is down and must not be loaded before `retry_at`. With `refuse`, drops and returns its waiting
        requests; else they keep waiting."""
        server = self.servers[key]
        server.tier, server.loading_since, server.redirected, server.retry_at = "stopped", None, None, retry_at
        refused = list(server.waiting) if refuse else []
        for ticket in refused:
            self.request_ended(ticket)
        return refused

    def decide(self, now: float) -> tuple[list[Action], list[Ticket], float | None]:
        """Returns the orders to carry out (load, sleep, stop), the admitted tickets, and when to decide again."""
        schedule = self._policy(self.state(now))
        admitted: list[Ticket] = []
        for action in schedule.actions:
            server = self.servers[action.key]
            if action.verb == "admit":
                admitted += server.waiting
                server.in_flight |= server.waiting.keys()
                server.waiting.clear()
                server.last_used, server.fresh = now, False
                continue
            server.from_sleep = server.tier == "asleep"
            server.tier = "loading" if action.verb == "load" else "unloading"
            if action.verb == "load":
                server.loading_since = now
                server.switches += 1
        return [action for action in schedule.actions if action.verb != "admit"], admitted, schedule.next_check

    def state(self, now: float) -> DeviceState:
        """The device at this moment, for the policy; its servers are those of the scheduler."""
        memory, host_memory, max_wait = self._budget
        return DeviceState(now, memory, host_memory, max_wait, list(self.servers.values()))
