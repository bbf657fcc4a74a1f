"""The scheduling problem of one device and its solution, as frozen values.

`policy.plan` maps a `DeviceState` to a `Schedule` of `Action`s. Memory is in GB, times in seconds of a monotonic clock.
"""

from __future__ import annotations

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

    `waiting` holds the arrival times of its held requests, oldest first. `redirected` counts the requests that its
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

    `memory` and `host_memory` are budgets. `max_wait` is how long a request may be held so that later requests for the
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
    """One step of a schedule. `count` is for `admit`: how many held requests to admit, oldest first."""

    verb: Verb
    key: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The actions to take now, and when to plan again if nothing happens before (None: no need)."""

    actions: tuple[Action, ...] = ()
    next_check: float | None = None
