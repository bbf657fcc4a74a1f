"""The scheduling policy of one device: `plan` maps a `DeviceState` to a `Schedule` of `Action`s. A pure function.

Requests for an awake server are admitted at once. Other requests wait until their server is loaded, one at a time. One
load serves every request that waits for that server, as one transmission does in pull-based broadcast scheduling, so
its rules apply:

1. *Order*: by urgency, the sum of the cubed waits of a server's requests by its load seconds. The sum of waits by size
   is the index of Longest Wait First, and nearly the Whittle index (Raissi-Dehkordi and Baras 2002); with a convex cost
   of a wait it is the generalised c-mu rule (Van Mieghem 1995), and bounds the long waits as well (Chekuri, Im and
   Moseley 2009, arXiv 0906.2395).
2. *When*: a load has a price in seconds of wait. A server is loaded once its requests have waited so long in sum, the
   rule of dynamic acknowledgement (Dooly, Goldman and Scott 2001), or once one has waited `GATHER_LIMIT` x `max_wait`.
   The price grows with the *offered load* of the device: the load seconds a second that it would need if every request
   for a server that is not awake had a load of its own. A device that can keep up loads at once; one that cannot
   gathers requests.
3. *Eviction*: first the servers that would cost least to have back for their memory: request rate x load seconds / GB
   (as GreedyDual-Size-Frequency, Cherkasova 1998). Idle ones come before busy ones, which drain: they accept nothing
   new and unload once they are idle.
4. *Ahead*: room for the next `LOOKAHEAD` servers is made while another still loads.

A server with requests in flight is never unloaded. When none is wanted, a server with a forecast of at least one
request within `max_wait` is prefetched into free memory.

Memory is in GB, times in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    time until it would be awake; for one that is awake, from the tier that it would rest in. After a failed start it is
    not loaded before `retry_at`. `from_sleep` marks an unloading server that was asleep before.
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

    `memory` and `host_memory` are budgets. `max_wait` scales how long a request may wait so that later requests for
    the same expert can join it.
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


GATHER_LIMIT = 1.5
"""Multiple of `max_wait` after which a request has waited long enough for others to join it. The rest of twice
`max_wait` is for its turn among the others."""
PRICE, PRICE_LIMIT = 0.4, 2.5
"""Price of a load by `max_wait`, at an offered load of 1, and at most. It grows with the square of the offered load."""
WAIT_EXPONENT = 3
"""Exponent of the cost of a wait. Greater ones favour the oldest requests, smaller ones the longest queues."""
LOOKAHEAD = 4
"""Servers that room is made for at a time."""
BUSY_FACTOR = 20.0
"""Factor on the cost of evicting a server with requests in flight: its memory is free only when they end."""
_PRECISION = 1e-9
"""GB below which a lack of memory is a rounding error."""
_SHORTEST_CHECK = 0.1
"""Seconds between two checks at least: prices change meanwhile."""


def plan(state: DeviceState) -> Schedule:
    """Returns the actions for this moment. Call it again after carrying them out, and after every event."""
    actions = [Action("admit", s.key, len(s.waiting)) for s in state.servers if s.tier == "awake" and s.waiting]
    targets, evicted, next_check = _choose(state)
    keys = {server.key for server in evicted}
    actions += [Action("resume", s.key) for s in state.servers if s.tier == "draining" and s.key not in keys]
    actions += _evict(state, evicted)
    if any(server.tier == "loading" for server in state.servers):  # one at a time: two would share its bandwidth
        return Schedule(tuple(actions), next_check)
    target = targets[0] if targets else _prefetched(state)
    if target is not None and _lacking(target) <= state.free + _PRECISION:
        actions.append(Action("load", target.key))
    return Schedule(tuple(actions), next_check)


def _choose(state: DeviceState) -> tuple[list[ServerState], list[ServerState], float | None]:
    """The servers to load next, in order; those to evict for them; and when the next one may be worth its price."""
    wanted = [s for s in state.servers if s.tier in ("asleep", "stopped") and (s.waiting or s.redirected)]
    checks = [s.retry_at for s in wanted if s.retry_at > state.now]
    most = _unpinned(state)
    wanted = [s for s in wanted if s.retry_at <= state.now and (s.profile.pinned or s.profile.memory <= most)]
    if not wanted:
        return [], [], min(checks, default=None)
    offered = sum(s.rate * s.load_seconds for s in state.servers if s.tier not in ("awake", "draining"))
    available = state.free + sum(_freed_memory(s) for s in state.servers if s.tier == "unloading")
    victims = sorted(_evictable(state), key=_eviction_order)
    targets: list[ServerState] = []
    evicted: list[ServerState] = []
    for server in sorted(wanted, key=lambda s: -_urgency(s, state.now)):
        leaving = _leaving(victims[len(evicted) :], _lacking(server) - available)
        if leaving is None or len(targets) == LOOKAHEAD:
            break
        lost = sum(s.rate * s.load_seconds for s in leaving)
        worth_at = _worth_at(server, state, offered + lost)
        if worth_at > state.now:
            checks.append(max(worth_at, state.now + _SHORTEST_CHECK))
            continue
        targets.append(server)
        evicted += leaving
        available += sum(map(_freed_memory, leaving)) - _lacking(server)
    return targets, evicted, min(checks, default=None)


def _urgency(server: ServerState, now: float) -> float:
    """Cost of the waits of a server's requests, as of when it could be awake, by its load seconds."""
    seconds = max(server.load_seconds, 1e-3)
    return sum((now + seconds - arrived) ** WAIT_EXPONENT for arrived in _arrivals(server, now)) / seconds


def _arrivals(server: ServerState, now: float) -> Iterable[float]:
    """When its requests arrived. Those that the stand-in answered count as if they had just come."""
    return (*server.waiting, *([now] * server.redirected))


def _worth_at(server: ServerState, state: DeviceState, offered: float) -> float:
    """When a load is worth its price, if no more requests arrive and the price stays."""
    price = state.max_wait * min(PRICE_LIMIT, PRICE * offered**2)
    arrivals = _arrivals(server, state.now)
    waited = sum(state.now + server.load_seconds - arrived for arrived in arrivals)
    paid = state.now + (price - waited) / (len(server.waiting) + server.redirected)
    oldest = min(arrivals, default=state.now)
    return min(paid, oldest + GATHER_LIMIT * state.max_wait - server.load_seconds)


def _unpinned(state: DeviceState) -> float:
    """GB beside the pinned servers. Requests for a server that needs more wait until their timeout."""
    return state.memory - sum(s.profile.memory for s in state.servers if s.profile.pinned) + _PRECISION


def _prefetched(state: DeviceState) -> ServerState | None:
    """The server of highest forecast that fits into free memory, if nobody waits for another."""
    if any(s.waiting and s.tier not in ("awake", "draining") for s in state.servers):
        return None
    likely = [
        s
        for s in state.servers
        if s.tier in ("asleep", "stopped") and s.retry_at <= state.now and s.rate * state.max_wait >= 1.0
    ]
    return max((s for s in likely if _lacking(s) <= state.free), key=lambda s: s.rate, default=None)


def _lacking(server: ServerState) -> float:
    """GB that the server needs beyond what it occupies."""
    return server.profile.memory - server.device_memory


def _busy(server: ServerState) -> bool:
    """In use, or about to be: the same plan admits the waiting requests of an awake server."""
    return server.in_flight > 0 or (server.tier == "awake" and len(server.waiting) > 0)


def _leaving(victims: Sequence[ServerState], lacking: float) -> list[ServerState] | None:
    """The first victims that free `lacking` GB; None if all are not enough."""
    chosen: list[ServerState] = []
    for server in victims:
        if lacking <= _PRECISION:
            break
        chosen.append(server)
        lacking -= _freed_memory(server)
    return chosen if lacking <= _PRECISION else None


def _evictable(state: DeviceState) -> Iterator[ServerState]:
    for server in state.servers:
        if server.tier in ("awake", "draining"):
            if not server.profile.pinned:
                yield server
        elif server.tier == "asleep" and server.profile.asleep_memory and not (server.waiting or server.redirected):
            yield server


def _eviction_order(server: ServerState) -> tuple[int, float, float]:
    """Draining servers first, sleeping ones last; then by the cost of having it back, and by time of last use."""
    rank = {"draining": 0, "awake": 1}.get(server.tier, 2)
    return rank, return_cost(server) * (BUSY_FACTOR if _busy(server) else 1.0), server.last_used


def return_cost(server: ServerState) -> float:
    """Load seconds a second that it would cost to have the server back for each request, by GB."""
    return server.rate * server.load_seconds / max(server.profile.memory, _PRECISION)


def _freed_memory(server: ServerState) -> float:
    """GB that unloading the server frees."""
    asleep = server.tier == "asleep" or (server.tier == "unloading" and server.from_sleep)
    keeps = server.profile.asleep_memory if server.profile.sleeps and not asleep else 0.0
    return server.device_memory - keeps


def _evict(state: DeviceState, evicted: Sequence[ServerState]) -> Iterator[Action]:
    """Unloads idle servers and drains busy ones. If the host's RAM has no space for a server, it is stopped. The
    sleeping server that costs least to have back is then stopped too, if it costs less, so that there is space the next
    time."""
    host = state.host_free
    idle = (s for s in state.servers if s.tier == "asleep" and not s.waiting and s not in evicted)
    asleep = sorted(idle, key=return_cost)
    for server in evicted:
        if _busy(server):
            if server.tier == "awake":
                yield Action("drain", server.key)
        elif server.tier != "asleep" and server.profile.sleeps and host >= server.profile.host_memory:
            host -= server.profile.host_memory
            yield Action("sleep", server.key)
        else:
            yield Action("stop", server.key)
            if server.profile.sleeps and asleep and return_cost(asleep[0]) < return_cost(server):
                yield Action("stop", asleep.pop(0).key)
