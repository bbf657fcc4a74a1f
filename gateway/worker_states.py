"""State of each worker process in memory that the parent and all workers share."""

from __future__ import annotations

import ctypes
from multiprocessing.sharedctypes import RawArray

CAUSE_BYTES = 512
"""Bytes kept of the error that ended a worker's start."""


class _Cell(ctypes.Structure):
    _fields_ = (
        ("ready", ctypes.c_bool),
        ("crashes", ctypes.c_uint64),
        ("cause", ctypes.c_char * CAUSE_BYTES),
    )


class WorkerStates:
    """One cell for each worker. Its worker writes `ready` and `cause`, the parent writes `crashes`, so no lock is
    needed. Workers are numbered from 0."""

    def __init__(self, workers: int) -> None:
        self._cells = RawArray(_Cell, workers)

    def ready(self, worker: int) -> None:
        """Record that a worker serves requests."""
        self._cells[worker].ready = True

    @property
    def ever_ready(self) -> bool:
        """Whether any worker has served requests since the parent started."""
        return any(cell.ready for cell in self._cells)

    def failed(self, worker: int, cause: str) -> None:
        """Record why a worker could not start."""
        self._cells[worker].cause = cause.encode("utf-8", "replace")[: CAUSE_BYTES - 1]

    def cause(self, worker: int) -> str:
        """The error that ended a worker's start; empty where it reported none."""
        return bytes(self._cells[worker].cause).decode("utf-8", "replace")

    def crashed(self, worker: int) -> None:
        """Count a crash."""
        self._cells[worker].crashes += 1

    def crashes(self) -> dict[tuple[str, ...], float]:
        """Crashes since the parent started, by worker."""
        return {(str(worker),): float(cell.crashes) for worker, cell in enumerate(self._cells)}
