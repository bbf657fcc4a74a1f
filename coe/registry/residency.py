"""Residency: local experts that need more memory together than the devices have take turns."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coe.registry.base import Declared, Name, Positive


class Device(Declared):
    """Memory that experts take turns in: a GPU, several that hold one expert together, or a machine's RAM."""

    name: Name
    memory_gb: Positive
    """For experts alone: leave out what else runs there."""


class Residency(Declared):
    """How the local experts share the devices. Each needs memory_gb then."""

    devices: tuple[Device, ...] = Field(min_length=1)
    sleep_memory_gb: Annotated[float, Field(ge=0)] = 0.0
    """RAM for vLLM experts asleep, divided evenly among the devices; what does not fit is stopped."""
    max_wait: Positive = 30.0
    """Seconds that requests for an expert that is not awake may wait so that others like them can join, which saves
    switches. What loading takes comes on top where many are asked for at once."""
    hold: Positive = 120.0
    """Seconds after which a request that still waits goes to the next expert that is awake, or ends with 503."""
