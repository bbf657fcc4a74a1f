"""Chooses the device of servers that may use several, and keeps on which device each server is.

A server is on one device at a time, and only a stopped one moves. Where requests wait for a stopped server, it goes to
the device with the least `load_cost`: the seconds until the load is worth its price there, the loads before it, and its
own load. The price depends on the offered load of the device and on what must leave, as in `plan`. Between equal costs,
the servers that leave decide, then the current device.

A sleeping server wakes where it sleeps. But once a request has waited for it as long as a start takes, and another of
its devices has nothing to load and enough memory that is free or held by idle servers, it is stopped and starts there.
A device on which a server did not start is avoided for `FAILED_DEVICE_SECONDS`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from coe.fleet.residency.policy import (
    BUSY_FACTOR,
    Waits,
    eviction_order,
    freed_memory,
    is_busy,
    is_requested,
    select_victims,
    weighed,
)
from coe.fleet.residency.scheduler import Scheduler
from coe.fleet.residency.state import DeviceState, ServerState

MOVE_MARGIN = 1.0
"""Seconds that a move must save a server whose requests wait already: room may have been made for it."""
RECONSIDER_SECONDS = 1.0
"""Seconds after which the device of a waiting server is chosen again, one server in a decision: decisions stay fast."""
FAILED_DEVICE_SECONDS = 600.0
"""Seconds for which a server whose start failed on a device prefers its other devices."""

Cost = tuple[float, float]
"""Seconds until the server would be awake, and reload seconds a second of what leaves for it."""


def load_cost(server: ServerState, state: DeviceState) -> Cost:
    """The cost of loading `server` on a device, which may be its current one. Infinite if too few servers may leave."""
    others = replace(state, servers=tuple(_loaded(s) for s in state.servers if s.key != server.key))
    lacking = server.profile.memory - _available_memory(others)
    leaving = select_victims(sorted(_evictable(others), key=eviction_order), lacking)
    if leaving is None:
        return math.inf, math.inf
    lost = sum(s.rate * s.load_seconds * (BUSY_FACTOR if is_busy(s) else 1.0) for s in leaving if s.tier == "awake")
    offered = sum(s.rate * s.load_seconds for s in others.servers if s.tier not in ("awake", "draining"))
    urgent = Waits(server, state.now)
    due = weighed(urgent, leaving, state, offered + lost).due
    before = sum(s.load_seconds for s in state.servers if s.key != server.key and _loads_before(s, urgent, state.now))
    return max(due - state.now, 0.0) + before + server.load_seconds, lost


def _available_memory(state: DeviceState) -> float:
    """GB of the device that are free or about to be."""
    return state.free + sum(freed_memory(s) for s in state.servers if s.tier == "unloading")


def _evictable(state: DeviceState) -> Iterator[ServerState]:
    for server in state.servers:
        if server.tier in ("awake", "draining"):
            if not server.profile.pinned:
                yield server
        elif server.tier == "asleep" and server.profile.asleep_memory:
            yield server


def _loaded(server: ServerState) -> ServerState:
    """A server as it is after the load under way: it may leave once its requests have ended."""
    return replace(server, tier="awake", in_flight=1) if server.tier == "loading" else server


def _loads_before(other: ServerState, urgent: Waits, now: float) -> bool:
    if other.tier == "loading":
        return True
    waits = other.tier in ("asleep", "stopped") and is_requested(other) and other.retry_at <= now
    return waits and Waits(other, now).urgency >= urgent.urgency


def device_choices(servers: Iterable[Iterable[str]]) -> dict[str, list[int]]:
    """The devices of each server, by number, from the keys of the servers of each device."""
    choices: dict[str, list[int]] = {}
    for number, keys in enumerate(servers):
        for key in keys:
            choices.setdefault(key, []).append(number)
    return choices


def spread(
    sizes: Mapping[str, float], choices: Mapping[str, Sequence[int]], memory: Sequence[float]
) -> tuple[dict[str, int], list[str]]:
    """The first device of each server, by number, and the servers that fit awake together, the first of `sizes` first.

    Each server gets the device with most memory left; if it fits on none, the one with the fewest servers for its
    memory.
    """
    free, placed = list(memory), [0.0] * len(memory)
    homes, awake = dict[str, int](), list[str]()
    for key, size in sizes.items():
        home = max(choices[key], key=lambda number: (free[number], -number))
        if size <= free[home]:
            free[home] -= size
            awake.append(key)
        else:
            home = min(choices[key], key=lambda number: (placed[number] / memory[number], number))
        placed[home] += size
        homes[key] = home
    return homes, awake


class Placement:
    """On which device each server is. Call `settle` before the decisions of an event, and `decide` for a device."""

    def __init__(self, schedulers: Sequence[Scheduler], choices: Mapping[str, Sequence[int]]) -> None:
        """`choices` are the devices of each server by number; each server is in the scheduler of one of them."""
        self._schedulers = schedulers
        self._homes = {key: number for number, one in enumerate(schedulers) for key in one.keys}
        self._choices = {key: tuple(numbers) for key, numbers in choices.items() if len(numbers) > 1}
        self._considered: dict[str, float] = {}
        self._leaving: tuple[str, int] | None = None
        """A sleeping server that is being stopped so that it may move, and the device to which it moves."""
        self._sleeping_considered = -math.inf
        self._failed: dict[str, dict[int, float]] = {}
        """Devices on which a server did not start, with the time of the failure, until it failed on all."""

    def device(self, key: str) -> int:
        """The number of the device that a server is on, or for a stopped one was on last."""
        return self._homes[key]

    def scheduler(self, key: str) -> Scheduler:
        return self._schedulers[self._homes[key]]

    def settle(self, now: float) -> set[int]:
        """Moves servers for which requests wait. Returns the numbers of the devices that have to decide again."""
        if not self._choices:
            return set()
        movable = [key for key in self._choices if self.scheduler(key).is_movable(key, now)]
        considered = {key: self._considered[key] for key in movable if key in self._considered}
        touched = set[int]()
        if considered and not (oldest := min(considered.values())) <= now < oldest + RECONSIDER_SECONDS:
            key = min(considered, key=considered.__getitem__)
            touched |= self._place(key, now, margin=MOVE_MARGIN)
            considered[key] = now
        for key in movable:
            if key not in considered:
                touched |= self._place(key, now, margin=0.0)
                considered[key] = now
        self._considered = considered
        return touched | self._stop_sleeping(now)

    def _stop_sleeping(self, now: float) -> set[int]:
        """Has the sleeping server whose requests waited longest stop, one at a time, if an idle device has memory."""
        if self._leaving is not None:
            if self.scheduler(self._leaving[0]).tier(self._leaving[0]) in ("asleep", "unloading"):
                return set()
            self._leaving = None
        if self._sleeping_considered <= now < self._sleeping_considered + RECONSIDER_SECONDS:
            return set()
        self._sleeping_considered = now
        late = [(at, key) for key in self._choices if (at := self.scheduler(key).oldest_late(key, now)) is not None]
        for _, key in sorted(late):
            home, failed = self._homes[key], self._failed_devices(key, now)
            others = (number for number in self._choices[key] if number != home and number not in failed)
            if (target := next((number for number in others if self._is_idle_for(key, number, now)), None)) is not None:
                self._schedulers[home].stop_asleep(key)
                self._leaving = key, target
                return {home}
        return set()

    def _is_idle_for(self, key: str, number: int, now: float) -> bool:
        """True if a device has nothing to load, and memory for the server that is free or held by idle servers."""
        memory = self.scheduler(key).server_state(key, now).profile.memory
        return self._schedulers[number].idle_memory(now) >= memory

    def _place(self, key: str, now: float, *, margin: float) -> set[int]:
        home = self._homes[key]
        if self._leaving is not None and self._leaving[0] == key:
            target, self._leaving = self._leaving[1], None
            if self._is_idle_for(key, target, now):  # a busy server at home may work for long, which no cost includes
                return self._move(key, target)
        server = self._schedulers[home].server_state(key, now)
        costs = {number: load_cost(server, self._schedulers[number].state(now)) for number in self._choices[key]}
        failed = self._failed_devices(key, now)
        best = min(costs, key=lambda one: (math.isinf(costs[one][0]), one in failed, costs[one], one != home))
        if costs[best][1] == 0.0 < costs[home][1]:  # no server leaves there, while those here may be busy for long
            margin = 0.0
        if best == home or (home not in failed and costs[best][0] > costs[home][0] - margin):
            return set()
        return self._move(key, best)

    def _move(self, key: str, target: int) -> set[int]:
        home, self._homes[key] = self._homes[key], target
        self._schedulers[target].add(self._schedulers[home].remove(key))
        return {home, target}

    def _failed_devices(self, key: str, now: float) -> set[int]:
        """The devices on which a server did not start lately."""
        found = self._failed.get(key, {}).items()
        return {number for number, at in found if at <= now < at + FAILED_DEVICE_SECONDS}

    def start_failed(self, key: str, now: float) -> bool:
        """Prefer the other devices of a server for its next starts. Returns False if it failed on all of them, or has
        no other one."""
        if key not in self._choices:
            return False
        self._failed[key] = {number: self._failed[key][number] for number in self._failed_devices(key, now)} | {
            self._homes[key]: now
        }
        if not set(self._choices[key]) <= self._failed[key].keys():
            return True
        del self._failed[key]
        return False

    def started(self, key: str) -> None:
        """Forget that a server did not start on its device."""
        self._failed.get(key, {}).pop(self._homes[key], None)

    def next_check(self, number: int, next_check: float | None, now: float) -> float | None:
        """When a device decides again: earlier than its scheduler needs while a server there may still move."""
        scheduler = self._schedulers[number]
        if any(self._homes[key] == number for key in self._considered) or any(
            self._homes[key] == number and scheduler.is_waiting_asleep(key) for key in self._choices
        ):
            return min([now + RECONSIDER_SECONDS, *([] if next_check is None else [next_check])])
        return next_check
