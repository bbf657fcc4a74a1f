"""The scheduling policy of one device: `plan` maps a `DeviceState` to a `Schedule` of `Action`s. A pure function.

Requests for an awake server are admitted at once. Other requests wait until their server is loaded. One load serves all
that wait for the server, as one transmission does in pull-based broadcast scheduling, so its rules apply:

1. *Order*: by urgency, highest first. Urgency is the sum of the cubed waits of a server's requests divided by its load
   seconds. With waits that are not cubed, this is the index of Longest Wait First, and nearly the Whittle index
   (Raissi-Dehkordi and Baras 2002). A convex cost of a wait makes it the generalised c-mu rule (Van Mieghem 1995), and
   bounds the long waits as well (Chekuri, Im and Moseley 2009, arXiv 0906.2395).
2. *When*: a load has a price in seconds of wait, at most `max_wait`. A server is loaded once the norm of its requests'
   waits reaches the price: the rule of dynamic acknowledgement (Dooly, Goldman and Scott 2001), whose cost is the sum
   or the maximum of the waits, with a norm between the two. The price grows with the *offered load* of the device: the
   load seconds a second that it would need if every request for a server that is not awake had its own load. A
   device with spare capacity loads at once; an overloaded device batches requests.
3. *Eviction*: the servers with the lowest reload cost per GB first: request rate x load seconds / GB (as in
   GreedyDual-Size-Frequency, Cherkasova 1998), idle servers before busy ones. Those that turn out not to be needed,
   because a larger one is evicted as well, stay. Sleeping servers are stopped if the memory that they keep is needed,
   those with waiting requests last, and awake ones are stopped if they would keep too much.
4. *Lookahead*: idle servers are unloaded for the next `LOOKAHEAD` servers while another one still loads. A busy server
   drains (it accepts no new request and unloads once it is idle) only for the most urgent one, and does not begin to
   during a load: memory that waits for work to end is idle. What fits next to the most urgent one loads in the
   meantime.
5. *One load at a time*, since two would share its bandwidth. But servers that sleep in RAM wake during a start, one at
   a time, where idle servers leave enough memory.

A server with requests in flight is never unloaded. When none is wanted, a server with a forecast of at least one
request within `max_wait` is prefetched into free memory.

Memory is in GB, times in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from coe.fleet.residency.state import Action, Candidate, DeviceState, Schedule, ServerState

PRICE, PRICE_LIMIT = 0.38, 1.0
"""Price of a load as a multiple of `max_wait`: PRICE x the offered load, at most PRICE_LIMIT. A lone request gathers
others for at most that long. Waiting for its turn among the other loads may then take as long again."""
SPARE_LOAD = 0.5
"""Offered load up to which loads are free, since the device has time to spare. The price reaches its line at 1."""
WAIT_NORM = 1.5
"""Norm of the waits that pay for a load. 1 would be their sum, which leaves lone requests waiting for long; infinity
would be the longest wait, so that many requests could wait as long as one."""
WAIT_EXPONENT = 3
"""Exponent of the cost of a wait. Greater ones favour the oldest requests, smaller ones the longest queues."""
LOOKAHEAD = 2
"""Servers that room is made for at a time. With more, memory stays empty for long before it is used."""
BUSY_FACTOR = 20.0
"""Factor on the cost of evicting a server with requests in flight: its memory is free only when they end."""
_PRECISION = 1e-9
"""GB below which a lack of memory is a rounding error."""
_TIME_PRECISION = 1e-6
"""Seconds below which a load that is not due yet is due: rounding errors of a norm."""
_SHORTEST_CHECK = 0.1
"""Seconds between two checks at least: prices change in between."""


def plan(state: DeviceState, *, explain: bool = False) -> Schedule:
    """Returns the actions for this moment. Call it again after carrying them out, and after every event. The candidates
    are complete with `explain` only, which takes longer: else those that are far from due are left out."""
    device = _Sums(state)
    actions = [Action("admit", s.key, len(s.waiting)) for s in device.awake if s.waiting]
    targets, evicted, next_check, candidates = _select_loads(state, device, explain=explain)
    keys = {server.key for server in evicted}
    actions += [Action("resume", s.key) for s in device.draining if s.key not in keys]
    actions += _evict(state, evicted)
    if device.waking:
        return Schedule(tuple(actions), next_check, candidates)
    loads = [one for one in targets if _is_in_ram(one)] if device.loading else targets or _prefetch_candidates(state)
    target = next((one for one in loads if _missing_memory(one) <= device.free + _PRECISION), None)
    if target is not None:
        actions.append(Action("load", target.key))
    return Schedule(tuple(actions), next_check, candidates)


class _Sums:
    """Sums over all servers for one decision, in one pass: with hundreds of servers, passes take most of its time."""

    __slots__ = (
        "available",
        "awake",
        "draining",
        "evictable",
        "free",
        "loading",
        "offered",
        "unpinned",
        "waking",
        "wanted",
    )

    def __init__(self, state: DeviceState) -> None:
        self.awake: list[ServerState] = []
        self.draining: list[ServerState] = []
        self.wanted: list[ServerState] = []
        self.evictable = list[ServerState]()
        self.loading = self.waking = False
        offered = occupied = leaving = pinned = 0.0
        for server in state.servers:
            tier, profile = server.tier, server.profile
            if profile.pinned:
                pinned += profile.memory
            if tier in ("asleep", "stopped"):
                offered += server.rate * server.load_seconds
                if server.waiting or server.redirected:
                    self.wanted.append(server)
                if profile.asleep_memory and tier == "asleep":
                    occupied += profile.asleep_memory
                    self.evictable.append(server)
                continue
            occupied += server.device_memory
            if tier in ("awake", "draining"):
                (self.awake if tier == "awake" else self.draining).append(server)
                if not profile.pinned:
                    self.evictable.append(server)
                continue
            offered += server.rate * server.load_seconds
            if tier == "unloading":
                leaving += freed_memory(server)
            else:
                self.loading = True
                self.waking |= server.from_sleep
        self.offered = offered
        self.free = state.memory - occupied
        self.available = self.free + leaving
        self.unpinned = state.memory - pinned + _PRECISION


def _select_loads(
    state: DeviceState, device: _Sums, *, explain: bool
) -> tuple[list[ServerState], list[ServerState], float | None, tuple[Candidate, ...]]:
    """The servers to load next, in order; those to evict for them; when the next one may be worth its price; and all
    that were weighed."""
    wanted, candidates = _loadable(device.wanted, state.now, device.unpinned)
    checks = [one.due for one in candidates if one.obstacle == "failed"]
    perhaps, later = _perhaps_due(wanted, state, device.offered)
    if not explain:
        wanted = perhaps
        checks += later
    if not wanted:
        return [], [], min(checks, default=None), tuple(candidates)
    available = device.available
    victims = sorted(device.evictable, key=eviction_order)
    idle = [s for s in victims if not _needed(s)]
    first = [s for s in victims if s.tier == "draining" or not _needed(s)] if device.loading else victims
    targets: list[ServerState] = []
    evicted: list[ServerState] = []
    leave = set[str]()
    waits = (Waits(server, state.now) for server in wanted)
    perhaps_due = {server.key for server in perhaps}  # the others explain who waits, and change no decision
    starting = device.loading and not device.waking  # what sleeps in RAM may wake at the same time
    for urgent in sorted(waits, key=lambda one: (starting and not _is_in_ram(one.server), -one.urgency)):
        server = urgent.server
        if server.key in leave:  # it leaves for a more urgent one
            candidates.append(Candidate(server.key, obstacle="no_room"))
            continue
        may_leave = idle if targets else [s for s in first if s is not server]
        leaving = select_victims(may_leave, _missing_memory(server) - available)
        if leaving is None or len(targets) == LOOKAHEAD:
            candidates.append(Candidate(server.key, obstacle="no_room"))
            if server.key not in perhaps_due:
                continue
            break
        lost = sum(s.rate * s.load_seconds for s in leaving if s.tier != "asleep")
        candidate = weighed(urgent, leaving, state, device.offered + lost)
        candidates.append(candidate)
        if candidate.due > state.now + _TIME_PRECISION:
            checks.append(max(candidate.due, state.now + _SHORTEST_CHECK))
            continue
        targets.append(server)
        evicted += leaving
        leave.update(candidate.evicts)
        idle = [s for s in idle if s.key not in candidate.evicts]
        available += sum(map(freed_memory, leaving)) - _missing_memory(server)
    return targets, evicted, min(checks, default=None), tuple(candidates)


def _loadable(
    wanted: Sequence[ServerState], now: float, max_memory: float
) -> tuple[list[ServerState], list[Candidate]]:
    """The servers that may load at all, and the others with their obstacles. Requests for a server that is larger than
    its device wait until their timeout."""
    loadable, others = [], []
    for server in wanted:
        if server.retry_at > now:
            others.append(Candidate(server.key, due=server.retry_at, obstacle="failed"))
        elif server.profile.memory <= max_memory or server.profile.pinned:
            loadable.append(server)
        else:
            others.append(Candidate(server.key, obstacle="too_large"))
    return loadable, others


def _perhaps_due(
    wanted: Sequence[ServerState], state: DeviceState, offered: float
) -> tuple[list[ServerState], list[float]]:
    """The servers that may be due, and when to check the others. A norm of n waits is at most n to the power of
    1 / WAIT_NORM times the longest, and a price is lowest if nothing that must be loaded again leaves."""
    now, price = state.now, _price(state.max_wait, offered)
    perhaps, later = [], []
    for server in wanted:
        waiting = server.waiting
        number = len(waiting) + server.redirected
        due = (waiting[0] if waiting else now) - server.load_seconds
        due += price if number == 1 else price / number ** (1 / WAIT_NORM)
        if due > now + _TIME_PRECISION:
            later.append(due)
        else:
            perhaps.append(server)
    return perhaps, [max(min(later), now + _SHORTEST_CHECK)] if later else []


class Waits:
    """The waits of a server's requests at the time it could be awake, and its urgency: the sum of the cubed waits
    divided by its load seconds. Requests that the stand-in answered count as if they had just come."""

    __slots__ = ("server", "urgency", "waits")

    def __init__(self, server: ServerState, now: float) -> None:
        awake = now + server.load_seconds
        self.server = server
        self.waits = [max(awake - arrived, 0.0) for arrived in server.waiting]
        self.waits += [server.load_seconds] * server.redirected
        self.urgency = sum([wait**WAIT_EXPONENT for wait in self.waits]) / max(server.load_seconds, 1e-3)


def weighed(urgent: Waits, leaving: Sequence[ServerState], state: DeviceState, offered: float) -> Candidate:
    """The server with its price, and a time before which the load is not worth it if the price stays: a norm of n waits
    grows by n to the power of 1 / WAIT_NORM a second at most."""
    price, waits = _price(state.max_wait, offered), urgent.waits
    waited = sum([wait**WAIT_NORM for wait in waits]) ** (1 / WAIT_NORM)
    due = state.now + (price - waited) / len(waits) ** (1 / WAIT_NORM)
    return Candidate(urgent.server.key, waited, price, due, tuple(victim.key for victim in leaving))


def _price(max_wait: float, offered: float) -> float:
    """Seconds of wait that a load costs on a device with this offered load."""
    busy = max(0.0, min(offered, (offered - SPARE_LOAD) / (1 - SPARE_LOAD)))
    return max_wait * min(PRICE_LIMIT, PRICE * busy)


def _prefetch_candidates(state: DeviceState) -> list[ServerState]:
    """The servers with a forecast of a request within `max_wait`, highest first, if no request waits for another."""
    if any(s.waiting and s.tier not in ("awake", "draining") for s in state.servers):
        return []
    likely = [
        s
        for s in state.servers
        if s.tier in ("asleep", "stopped") and s.retry_at <= state.now and s.rate * state.max_wait >= 1.0
    ]
    return sorted(likely, key=lambda s: -s.rate)


def _missing_memory(server: ServerState) -> float:
    """GB that the server needs beyond what it occupies."""
    return server.profile.memory - server.device_memory


def is_busy(server: ServerState) -> bool:
    """In use, or about to be: the same plan admits the waiting requests of an awake server."""
    return server.in_flight > 0 or (server.tier == "awake" and len(server.waiting) > 0)


def _needed(server: ServerState) -> bool:
    """It serves requests, or requests wait for it. Such a server leaves for the most urgent one only."""
    return is_busy(server) or (server.tier == "asleep" and is_requested(server))


def _is_in_ram(server: ServerState) -> bool:
    """It sleeps with its weights in RAM, so that its wake and a start from disk do not slow each other."""
    return server.tier == "asleep" and server.profile.host_memory > 0


def is_requested(server: ServerState) -> bool:
    return bool(server.waiting or server.redirected)


def select_victims(victims: Iterable[ServerState], lacking: float) -> list[ServerState] | None:
    """The first victims that free `lacking` GB, less those that the later ones make superfluous; None if all are not
    enough. If what they keep while asleep is needed too, the first ones are returned as servers that cannot sleep."""
    chosen: list[ServerState] = []
    for server in victims:
        if lacking <= _PRECISION:
            break
        chosen.append(server)
        lacking -= freed_memory(server)
    for index, server in enumerate(chosen):
        if lacking <= _PRECISION:
            break
        chosen[index] = replace(server, profile=replace(server.profile, sleeps=False))
        lacking -= freed_memory(chosen[index]) - freed_memory(server)
    if lacking > _PRECISION:
        return None
    for server in chosen[-2::-1]:
        if lacking + freed_memory(server) <= _PRECISION:
            lacking += freed_memory(server)
            chosen = [one for one in chosen if one is not server]
    return chosen


def eviction_order(server: ServerState) -> tuple[int, float, float]:
    """Draining servers first, sleeping ones last, most of all those with waiting requests; then by the cost of having
    it back, and by time of last use."""
    rank = {"draining": 0, "awake": 1}.get(server.tier, 3 if is_requested(server) else 2)
    return rank, reload_cost(server) * (BUSY_FACTOR if is_busy(server) else 1.0), server.last_used


def reload_cost(server: ServerState) -> float:
    """Reload cost per GB: load seconds per second if every request for the server had to load it again."""
    return server.rate * server.load_seconds / max(server.profile.memory, _PRECISION)


def freed_memory(server: ServerState) -> float:
    """GB that unloading the server frees."""
    asleep = server.tier == "asleep" or (server.tier == "unloading" and server.from_sleep)
    keeps = server.profile.asleep_memory if server.profile.sleeps and not asleep else 0.0
    return server.device_memory - keeps


def _evict(state: DeviceState, evicted: Sequence[ServerState]) -> Iterator[Action]:
    """Unload idle servers and drain busy ones.

    A server that does not fit into the host's RAM is stopped instead of put to sleep. The sleeping server with the
    lowest reload cost is then stopped as well if its cost is lower, which frees RAM for the next eviction.
    """
    if not evicted:
        return
    host, keys = state.host_free, {server.key for server in evicted}
    asleep: list[ServerState] | None = None
    for server in evicted:
        if is_busy(server):
            if server.tier == "awake":
                yield Action("drain", server.key)
        elif server.tier != "asleep" and server.profile.sleeps and host >= server.profile.host_memory:
            host -= server.profile.host_memory
            yield Action("sleep", server.key)
        else:
            yield Action("stop", server.key)
            if server.tier == "asleep" or not server.profile.sleeps:
                continue
            if asleep is None:
                idle = (s for s in state.servers if s.tier == "asleep" and not is_requested(s) and s.key not in keys)
                asleep = sorted(idle, key=reload_cost)
            if asleep and reload_cost(asleep[0]) < reload_cost(server):
                yield Action("stop", asleep.pop(0).key)
