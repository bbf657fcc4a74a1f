"""Maps declared experts to devices and to the servers that share each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coe.fleet.planning import group_by_server
from coe.fleet.residency.state import ServerProfile
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec, Registry

ASLEEP_SHARE = 0.05
"""Share of its memory that a sleeping server keeps on the device (graphs, the CUDA context)."""


@dataclass(frozen=True, slots=True)
class ScheduledServer:
    """A server on a shared device. `sleep_level` is None if the server is stopped instead."""

    profile: ServerProfile
    spec: ServerSpec
    sleep_level: int | None = None

    @property
    def key(self) -> str:
        return self.profile.key


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its budgets in GB, its servers, and the key of each expert's server."""

    name: str
    memory: float
    host_memory: float
    servers: tuple[ScheduledServer, ...]
    experts: Mapping[str, str]


def plan_devices(registry: Registry, specs: Sequence[ServerSpec]) -> list[Device]:
    """Returns the declared devices. `specs` are the servers that `local_servers` planned for the same experts, in
    order."""
    declared = registry.residency
    assert declared is not None
    servers: dict[str, list[ScheduledServer]] = {device.name: [] for device in declared.devices}
    experts: dict[str, dict[str, str]] = {device.name: {} for device in declared.devices}
    for group, spec in zip(group_by_server(registry.experts).values(), specs, strict=True):
        home = registry.device_of(group[0])
        assert home is not None
        servers[home].append(ScheduledServer(server_profile(group, spec.key), spec, _sleep_level(group)))
        experts[home] |= {expert.name: spec.key for expert in group}
    host_memory = declared.sleep_memory_gb / len(declared.devices)
    return [
        Device(one.name, one.memory_gb, host_memory, tuple(servers[one.name]), experts[one.name])
        for one in declared.devices
    ]


def server_profile(group: Sequence[ExpertSpec], key: str) -> ServerProfile:
    """The memory of the server that the experts of `group` share."""
    memory, level = max(expert.memory_gb or 0.0 for expert in group), _sleep_level(group)
    return ServerProfile(
        key,
        memory,
        pinned=any(expert.pinned for expert in group),
        sleeps=level is not None,
        asleep_memory=ASLEEP_SHARE * memory if level else 0.0,
        host_memory=memory if level == 1 else 0.0,
    )


def _sleep_level(group: Sequence[ExpertSpec]) -> int | None:
    return next((expert.sleep_level for expert in group if expert.sleep_level), None)
