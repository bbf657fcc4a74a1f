"""How often a server is checked, how long it may take to stop, and how long to wait before a restart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before a restart: `first`, doubling up to `ceiling`, and `first` again after `healthy` seconds up."""

    first: float = 1.0
    ceiling: float = 30.0
    healthy: float = 60.0

    def next(self, previous: float, *, up: float) -> float:
        """The delay that follows `previous` (0 when there was none) for a server that was ready for `up` seconds."""
        if not previous or up >= self.healthy:
            return self.first
        return min(previous * 2, self.ceiling)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds between checks, for one check, and between SIGTERM and SIGKILL; `misses` failed checks mean frozen."""

    check_every: float = 5.0
    check_timeout: float = 5.0
    misses: int = 3
    grace: float = 5.0
    backoff: Backoff = Backoff()
