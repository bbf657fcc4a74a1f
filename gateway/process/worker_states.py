"""The state of each worker process, shared in memory by parent and workers, the search for workers that hang, and the
schedule of restarts after crashes."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable, Sequence
from multiprocessing.sharedctypes import RawArray

CAUSE_BYTES = 512
"""Bytes kept of the error that ended a worker's start."""


class _Cell(ctypes.Structure):
    _fields_ = (
        ("ready", ctypes.c_bool),
        ("crashes", ctypes.c_uint64),
        ("cause", ctypes.c_char * CAUSE_BYTES),
        ("beats", ctypes.c_uint64),
    )


class WorkerStates:
    """One cell for each worker, numbered from 0. No lock is needed: a worker writes its own cell while it runs, and the
    parent after it has ended."""

    def __init__(self, workers: int) -> None:
        self.cells = RawArray(_Cell, workers)

    def set_ready(self, worker: int) -> None:
        """Record that a worker serves requests."""
        self.cells[worker].ready = True

    @property
    def ever_ready(self) -> bool:
        """True if any worker has served requests since the parent started."""
        return any(cell.ready for cell in self.cells)

    def set_failed(self, worker: int, cause: str) -> None:
        """Record why a worker could not start."""
        self.cells[worker].cause = cause.encode("utf-8", "replace")[: CAUSE_BYTES - 1]

    def cause(self, worker: int) -> str:
        """The error that ended a worker's start; empty if it reported none."""
        return bytes(self.cells[worker].cause).decode("utf-8", "replace")

    def beat(self, worker: int) -> None:
        """Record that a worker's event loop runs, now and every BEAT_SECONDS. Call it in the loop, once."""
        self.cells[worker].beats += 1
        asyncio.get_running_loop().call_later(BEAT_SECONDS, self.beat, worker)

    def count_crash(self, worker: int) -> None:
        """Count a crash."""
        self.cells[worker].crashes += 1
        self.cells[worker].beats = 0

    def crashes(self) -> dict[tuple[str, ...], float]:
        """Crashes since the parent started, by worker."""
        return {(str(worker),): float(cell.crashes) for worker, cell in enumerate(self.cells)}


BEAT_SECONDS = 5.0
CHECK_SECONDS = 15.0
MAX_SILENT_CHECKS = 2
"""A worker hangs if it has not beaten before this many checks in succession: for 30 to 45 s."""


class Watchdog:
    """Finds the workers whose event loop hangs. One that is starting does not beat yet, and is not watched.

    It counts checks and not seconds: after a pause of the whole gateway, the workers beat before the next check.
    `clock` is in seconds and monotonic.
    """

    def __init__(self, states: WorkerStates, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cells = states.cells
        self._clock = clock
        self._beats = [0] * len(states.cells)
        self._silent_checks = [0] * len(states.cells)
        self._next_check = clock() + CHECK_SECONDS

    def wait(self) -> float:
        """Seconds until the next check."""
        return max(self._next_check - self._clock(), 0.0)

    def hanging(self) -> Sequence[int]:
        """Check the workers, if a check is due; return those that hang."""
        if self.wait():
            return ()
        self._next_check = self._clock() + CHECK_SECONDS
        for worker, cell in enumerate(self._cells):
            is_silent = 0 < cell.beats == self._beats[worker]
            self._silent_checks[worker] = self._silent_checks[worker] + 1 if is_silent else 0
            self._beats[worker] = cell.beats
        return [worker for worker, checks in enumerate(self._silent_checks) if checks >= MAX_SILENT_CHECKS]


FIRST_DELAY_SECONDS = 0.5
"""Delay from a worker's first crash to its next start; each further crash doubles it."""
MAX_DELAY_SECONDS = 30.0
"""Maximum delay between a crash and the next start."""
HEALTHY_SECONDS = 60.0
"""Uptime of a worker after which its next crash counts as a first one."""


class RespawnSchedule:
    """The workers that wait for their next start, by number. `clock` is in seconds and monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delays: dict[int, float] = {}
        self._due: dict[int, float] = {}

    def crashed(self, worker: int, *, uptime: float) -> float:
        """Schedules the next start of a worker that ran for `uptime` seconds; returns the delay in seconds."""
        previous = 0.0 if uptime >= HEALTHY_SECONDS else self._delays.get(worker, 0.0)
        delay = self._delays[worker] = min(previous * 2, MAX_DELAY_SECONDS) or FIRST_DELAY_SECONDS
        self._due[worker] = self._clock() + delay
        return delay

    def wait(self) -> float | None:
        """Seconds until the next start is due; None if no worker waits."""
        return max(min(self._due.values()) - self._clock(), 0.0) if self._due else None

    def take_due(self) -> Sequence[int]:
        """Removes the workers whose start is due, and returns them."""
        now = self._clock()
        due = [worker for worker, at in self._due.items() if at <= now]
        for worker in due:
            del self._due[worker]
        return due
