"""Inputs and decisions of the scheduling policy of a device: servers with their tiers, actions with their reasons.

Memory is in GB, times in seconds of a monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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
    not loaded before `retry_at`. `from_sleep` marks a loading or unloading server that was asleep before.
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
class Candidate:
    """A server that is not awake and that requests ask for, as the policy weighed it.

    It may load once `waited`, the norm of the waits of its requests as of when it could be awake, reaches `price`: not
    before `due` if no more requests arrive. `evicts` leave for it. An `obstacle` keeps it from loading: it failed and
    may not start yet, it is larger than its device, or the servers that may leave do not free enough memory.
    """

    key: str
    waited: float = 0.0
    price: float = 0.0
    due: float = math.inf
    evicts: tuple[str, ...] = ()
    obstacle: Literal["", "failed", "too_large", "no_room"] = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The actions to take now, and when to plan again if nothing happens before (None: no need). `candidates` are the
    servers that were weighed, those without an obstacle by urgency; they explain the actions."""

    actions: tuple[Action, ...] = ()
    next_check: float | None = None
    candidates: tuple[Candidate, ...] = field(default=(), compare=False)
