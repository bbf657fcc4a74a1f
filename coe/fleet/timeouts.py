"""Timeouts of local servers: health checks, graceful termination, restart delays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds before a restart: `initial`, doubling up to `maximum`, and `initial` again after a server was ready for
    `reset_after` seconds."""

    initial: float = 1.0
    maximum: float = 30.0
    reset_after: float = 60.0

    def next(self, previous: float, *, up: float) -> float:
        """The delay after `previous` (0 for the first) for a server that was ready for `up` seconds."""
        if not previous or up >= self.reset_after:
            return self.initial
        return min(previous * 2, self.maximum)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """`check_interval` and `check_timeout` of health checks, and `grace` between SIGTERM and SIGKILL, in seconds. After
    `max_missed_checks` failed checks a server counts as frozen."""

    check_interval: float = 5.0
    check_timeout: float = 5.0
    max_missed_checks: int = 3
    grace: float = 5.0
    backoff: Backoff = Backoff()
