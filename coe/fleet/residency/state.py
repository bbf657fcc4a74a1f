"""One device as its scheduling policy sees it: servers with their tiers and requests, and the actions on them.

Memory is in GB, times in seconds of a monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        """When the requests that ask for a load arrived, oldest first."""
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
