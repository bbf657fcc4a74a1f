"""What the policy sees of one device and what it may order: frozen values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["awake", "closing", "waking", "leaving", "asleep", "stopped"]
"""closing: awake, takes nothing new and goes when its work is done; leaving: being put to sleep or stopped."""


@dataclass(frozen=True, slots=True)
class ServerProfile:
    """A server that takes turns on a device; memory in GB.

    Awake it needs `memory`, asleep `asleep_memory` of the device and `host_memory` of the host's RAM; one that does not
    `sleep` is stopped instead. A `pinned` one stays awake.
    """

    key: str
    memory: float
    pinned: bool = False
    sleeps: bool = False
    asleep_memory: float = 0.0
    host_memory: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerState:
    """One resident now.

    `waiting` holds the arrivals of its held requests, oldest first; `wished` counts those that a sibling answers
    meanwhile. `rate` is the forecast in requests a second, `wake` the seconds until it would be awake. It may not be
    woken before `rests_until`: its last start failed. One that is leaving `from_sleep` was asleep. Times are in seconds
    of a monotonic clock.
    """

    resident: ServerProfile
    tier: Tier
    waiting: tuple[float, ...] = ()
    wished: int = 0
    in_flight: int = 0
    rate: float = 0.0
    last_used: float = 0.0
    wake: float = 1.0
    rests_until: float = 0.0
    from_sleep: bool = False

    @property
    def key(self) -> str:
        return self.resident.key


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device at one moment. `memory` and `host_memory` are budgets in GB, `max_wait` is in seconds: how long a
    request may wait so that others like it can join."""

    now: float
    memory: float
    host_memory: float
    max_wait: float
    seats: tuple[ServerState, ...]

    @property
    def free(self) -> float:
        """GB of the device that nobody has or is about to have."""
        return self.memory - sum(map(held, self.seats))

    @property
    def host_free(self) -> float:
        return self.host_memory - sum(s.resident.host_memory for s in self.seats if s.tier in ("asleep", "leaving"))


def held(seat: ServerState) -> float:
    """GB of the device that a seat has or is about to have."""
    if seat.tier == "stopped":
        return 0.0
    asleep = seat.tier == "asleep" or (seat.tier == "leaving" and seat.from_sleep)
    return seat.resident.asleep_memory if asleep else seat.resident.memory


Verb = Literal["admit", "wake", "close", "open", "sleep", "stop"]


@dataclass(frozen=True, slots=True)
class Action:
    """One order. `count` is for `admit`: so many of those who wait, oldest first."""

    verb: Verb
    key: str
    count: int = 0


@dataclass(frozen=True, slots=True)
class Schedule:
    """What to do now, and when to look again if nothing happens before (None: no need)."""

    actions: tuple[Action, ...] = ()
    again_at: float | None = None
