"""Maps declared experts to devices and to the servers that share each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from coe.fleet.planning import group_by_config
from coe.fleet.residency.policy import ServerProfile
from coe.fleet.specs import ServerSpec
from coe.registry import ExpertSpec, Registry

ASLEEP_SHARE = 0.05
"""Share of its memory that a sleeping vLLM server keeps on the device (graphs, the CUDA context)."""
WAKE_SECONDS, START_SECONDS = (1.0, 0.1), (20.0, 1.0)
"""Expected time to awake, from asleep and from stopped, before any measurement: seconds, and seconds a GB."""


@dataclass(frozen=True, slots=True)
class ScheduledServer:
    """A server on a shared device. `sleep_level` is that of vLLM, None if the server is stopped instead."""

    profile: ServerProfile
    spec: ServerSpec
    sleep_level: int | None = None

    @property
    def key(self) -> str:
        return self.profile.key

    @property
    def load_times(self) -> tuple[float, float]:
        """Expected seconds to awake, from asleep and from stopped."""
        memory = self.profile.memory
        return WAKE_SECONDS[0] + WAKE_SECONDS[1] * memory, START_SECONDS[0] + START_SECONDS[1] * memory


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its budgets in GB, its servers, and the key of each expert's server."""

    memory: float
    host_memory: float
    servers: tuple[ScheduledServer, ...]
    experts: Mapping[str, str]


def plan_devices(registry: Registry, specs: Sequence[ServerSpec]) -> list[Device]:
    """Returns the declared devices. `specs` are the servers that `local_servers` planned for the same experts, in
    order."""
    declared = registry.residency
    assert declared is not None
    groups = [cast("list[ExpertSpec]", group) for group in group_by_config(registry.experts).values()]
    devices = []
    for device in declared.devices:
        here = [
            (group, spec)
            for group, spec in zip(groups, specs, strict=True)
            if registry.device_of(group[0]) == device.name
        ]
        servers = tuple(_scheduled_server(group, spec) for group, spec in here)
        experts = {expert.name: spec.key for group, spec in here for expert in group}
        devices.append(Device(device.memory_gb, declared.sleep_memory_gb / len(declared.devices), servers, experts))
    return devices


def _scheduled_server(group: Sequence[ExpertSpec], spec: ServerSpec) -> ScheduledServer:
    memory = max(expert.memory_gb or 0.0 for expert in group)
    level = next((expert.sleep_level for expert in group if expert.sleep_level), None)
    profile = ServerProfile(
        spec.key,
        memory,
        pinned=any(expert.pinned for expert in group),
        sleeps=level is not None,
        asleep_memory=ASLEEP_SHARE * memory if level else 0.0,
        host_memory=memory if level == 1 else 0.0,
    )
    return ScheduledServer(profile, spec, level)
