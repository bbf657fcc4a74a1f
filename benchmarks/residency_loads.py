"""Sizes and load times of experts for the residency simulator: assumed ones, or those of real servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

MEMORY = 80.0
"""GB of the device."""
SMALLEST, LARGEST = 4.0, 12.0
"""GB of an expert, uniform: 2B to 8B parameters with some room for conversations."""
WAKE, START = (0.5, 1 / 20), (20.0, 1 / 2)
"""Seconds, and seconds a GB, until an expert is awake from asleep and from stopped."""


@dataclass(frozen=True, slots=True)
class Load:
    """One expert: GB, and seconds to awake from asleep and from stopped, to asleep and to stopped."""

    memory_gb: float
    wake_s: float
    start_s: float
    sleep_s: float
    stop_s: float
    sleeps: bool = True


@dataclass(frozen=True, slots=True)
class Host:
    """`measured` loads are taken in turn; without any they are stated ones, of sizes drawn from the seed. RAM for
    experts asleep is enough for what sleeps."""

    memory: float = MEMORY
    measured: tuple[Load, ...] = ()

    def loads(self, count: int, *, seed: int) -> list[Load]:
        if self.measured:
            return [self.measured[index % len(self.measured)] for index in range(count)]
        sizes = np.random.default_rng(seed + 3).uniform(SMALLEST, LARGEST, size=count)
        return [_stated(float(size)) for size in sizes]


def _stated(memory: float) -> Load:
    wake = WAKE[0] + WAKE[1] * memory
    return Load(memory, wake, START[0] + START[1] * memory, wake, 2.0)


def read_loads(file: Path) -> tuple[Load, ...]:
    """Read the load times that load_times.py has written."""
    found = orjson.loads(file.read_bytes()).values()
    return tuple(
        Load(
            one["memory_gb"],
            one["wake_s"] or 0.0,
            one["start_s"],
            one["sleep_s"] or 0.0,
            one["stop_s"],
            one["wake_s"] is not None,
        )
        for one in found
    )
