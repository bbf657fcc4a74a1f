"""From declared experts to devices with the servers that take turns there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coe.fleet.planning import sharing
from coe.fleet.residency.state import ServerProfile
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec, Registry

ASLEEP_SHARE = 0.05
"""Of a sleeping vLLM server's memory, what stays on the device (graphs, the CUDA context)."""
WAKE, START = (1.0, 0.1), (20.0, 1.0)
"""Seconds, and seconds a GB, that an expert takes to wake from asleep and from stopped, until it has been measured."""


@dataclass(frozen=True, slots=True)
class ScheduledServer:
    """A server with its place in the books; `level` is vLLM's when it sleeps, None for one that is stopped instead."""

    resident: ServerProfile
    spec: ServerSpec
    level: int | None = None

    @property
    def key(self) -> str:
        return self.resident.key

    @property
    def loads(self) -> tuple[float, float]:
        """Expected seconds to awake, from asleep and from stopped."""
        memory = self.resident.memory
        return WAKE[0] + WAKE[1] * memory, START[0] + START[1] * memory


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its budgets in GB, its rooms, and the room of each expert there."""

    memory: float
    host_memory: float
    rooms: tuple[ScheduledServer, ...]
    experts: Mapping[str, str]


def floors(registry: Registry, specs: Sequence[ServerSpec]) -> list[Device]:
    """The declared devices; `specs` are those that `local_servers` made of the same experts, in order."""
    declared = registry.residency
    assert declared is not None
    groups = list(zip(sharing(registry.experts).values(), specs, strict=True))
    found = []
    for device in declared.devices:
        there = [(sharers, spec) for sharers, spec in groups if registry.device_of(_expert(sharers[0])) == device.name]
        rooms = tuple(_room([_expert(one) for one in sharers], spec) for sharers, spec in there)
        experts = {one.name: spec.key for sharers, spec in there for one in sharers}
        found.append(Device(device.memory_gb, declared.sleep_memory_gb / len(declared.devices), rooms, experts))
    return found


def _expert(one: object) -> ExpertSpec:
    assert isinstance(one, ExpertSpec)
    return one


def _room(sharers: Sequence[ExpertSpec], spec: ServerSpec) -> ScheduledServer:
    memory = max(one.memory_gb or 0.0 for one in sharers)
    level = next((one.sleep_level for one in sharers if one.sleep_level), None)
    resident = ServerProfile(
        spec.key,
        memory,
        pinned=any(one.pinned for one in sharers),
        sleeps=level is not None,
        asleep_memory=ASLEEP_SHARE * memory if level else 0.0,
        host_memory=memory if level == 1 else 0.0,
    )
    return ScheduledServer(resident, spec, level)
