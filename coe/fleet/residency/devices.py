"""Maps declared experts to devices and to the servers that share each device.

A server that may use several devices is listed by each of them, with the environment that confines it to that device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coe.fleet.engines.engine import gpu_environment
from coe.fleet.planning import group_by_server
from coe.fleet.residency.load_times import LoadTimes
from coe.fleet.residency.state import ServerProfile, Tier
from coe.fleet.specs import START_SECONDS, ServerSpec
from coe.registry import DeviceSpec, ExpertSpec, Registry

ASLEEP_SHARE = 0.05
"""Share of its memory that a sleeping server keeps on the device (graphs, the CUDA context)."""
WAKE_SECONDS = (1.0, 0.1)
"""Expected time from asleep to awake before any measurement: seconds, and seconds a GB."""


@dataclass(frozen=True, slots=True)
class ScheduledServer:
    """A server on a shared device. `sleep_level` is None if the server is stopped instead. `measured` are its load
    times of earlier runs, in seconds by tier."""

    profile: ServerProfile
    spec: ServerSpec
    sleep_level: int | None = None
    measured: Mapping[Tier, float] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.profile.key

    @property
    def load_times(self) -> tuple[float, float]:
        """Expected seconds to awake, from asleep and from stopped."""
        memory, measured, start = self.profile.memory, self.measured, self.spec.start_seconds
        return load_seconds(memory, measured, "asleep"), load_seconds(memory, measured, "stopped", start)


def load_seconds(
    memory: float, measured: Mapping[Tier, float], tier: Tier, start: tuple[float, float] = START_SECONDS
) -> float:
    """Expected seconds to awake of a server of `memory` GB: those of earlier runs, or assumed ones.

    `start` is the assumed time from stopped to awake: seconds, and seconds a GB.
    """
    fixed, per_gb = WAKE_SECONDS if tier == "asleep" else start
    return measured.get(tier, fixed + per_gb * memory)


@dataclass(frozen=True, slots=True)
class Device:
    """One device: its budgets in GB, the servers that may use it, and the key of each expert's server."""

    memory: float
    host_memory: float
    servers: tuple[ScheduledServer, ...]
    experts: Mapping[str, str]
    name: str = ""


def plan_devices(registry: Registry, specs: Sequence[ServerSpec], load_times: LoadTimes | None = None) -> list[Device]:
    """Returns the declared devices, with the kept `load_times`. `specs` are the servers that `local_servers` planned
    for the same experts, in order."""
    declared = registry.residency
    assert declared is not None
    groups = group_by_server(registry.experts).values()
    devices = []
    for device in declared.devices:
        here = [
            (group, _confined(spec, device) if len(names) > 1 else spec)
            for group, spec in zip(groups, specs, strict=True)
            if device.name in (names := registry.devices_of(group[0]))
        ]
        servers = tuple(
            ScheduledServer(
                server_profile(group, spec.key),
                spec,
                _sleep_level(group),
                load_times.of(group[0].name) if load_times else {},
            )
            for group, spec in here
        )
        experts = {expert.name: spec.key for group, spec in here for expert in group}
        host_memory = declared.sleep_memory_gb / len(declared.devices)
        devices.append(Device(device.memory_gb, host_memory, servers, experts, device.name))
    return devices


def _confined(spec: ServerSpec, device: DeviceSpec) -> ServerSpec:
    return replace(spec, env={**spec.env, **gpu_environment(device.gpus)})


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
