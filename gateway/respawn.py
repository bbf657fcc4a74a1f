"""Decides when a crashed worker process starts again, separately for each worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

FIRST_DELAY = 0.5
"""Seconds from a worker's first crash to its next start; each further crash doubles it."""
MAX_DELAY = 30.0
"""Seconds at most between a crash and the next start."""
HEALTHY = 60.0
"""Seconds that a worker must have run for its next crash to count as a first one."""


class Respawns:
    """The workers that wait for their next start, by number. `clock` is in seconds and never goes back."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delays: dict[int, float] = {}
        self._due: dict[int, float] = {}

    def crashed(self, worker: int, *, ran: float) -> float:
        """Schedule the next start of a worker that ran for `ran` seconds; returns the delay in seconds."""
        previous = 0.0 if ran >= HEALTHY else self._delays.get(worker, 0.0)
        delay = self._delays[worker] = min(previous * 2, MAX_DELAY) or FIRST_DELAY
        self._due[worker] = self._clock() + delay
        return delay

    def wait(self) -> float | None:
        """Seconds until the next start is due; None where no worker waits."""
        return max(min(self._due.values()) - self._clock(), 0.0) if self._due else None

    def take_due(self) -> Sequence[int]:
        """Remove the workers whose start is due, and return them."""
        now = self._clock()
        due = [worker for worker, at in self._due.items() if at <= now]
        for worker in due:
            del self._due[worker]
        return due
