"""Checks `residency` in experts.yaml: the devices, the experts' residency keys, and whether the experts fit."""

from __future__ import annotations

from collections.abc import Iterable

from coe.registry.experts import ExpertSpec, ServerKey
from coe.registry.runtimes import LOCAL_RUNTIMES, RUNTIMES
from coe.registry.sections import ResidencySpec
from coe.registry.specs import Registry
from coe.registry.yaml_source import Problems

_RESIDENCY_KEYS = ("device", "pinned", "sleep_level", "stand_in")
"""Keys of an expert that need the section `residency`."""


def residency_problems(registry: Registry) -> Problems:
    """Check the residency keys of every expert; if they are right, check that the experts fit on their devices, or
    without residency into `budget.memory_gb`."""
    residency, wrong = registry.residency, False
    gpus = set[int]()
    for index, device in enumerate(residency.devices if residency else ()):
        if (twice := gpus.intersection(device.gpus)) or len(set(device.gpus)) < len(device.gpus):
            named = ", ".join(map(str, sorted(twice or device.gpus)))
            yield ("residency", "devices", index, "gpus"), f"GPU {named} is named twice; name it once"
        gpus.update(device.gpus)
    first: dict[ServerKey, ExpertSpec] = {}
    for index, expert in enumerate(registry.experts):
        if (found := _residency_problem(expert, first.setdefault(expert.server_key, expert), registry)) is not None:
            wrong = True
            yield ("experts", index, found[0]), f"{expert.name!r}: {found[1]}"
    if residency is None:
        needed, allowed = sum(server_memory(registry.experts).values()), registry.budget.memory_gb
        if allowed is not None and needed > allowed:
            what = (
                f"the local experts need {needed:g} GB together and memory_gb allows {allowed:g}; raise it, or declare"
            )
            yield ("budget", "memory_gb"), f"{what} `residency` to share the memory"
    if residency is None or wrong:
        return
    if residency.wait_timeout < residency.max_wait:
        yield (
            ("residency", "wait_timeout"),
            f"wait_timeout must be at least max_wait ({residency.max_wait:g}), or requests expire too soon",
        )
    yield from _device_memory_problems(registry, residency)


def _residency_problem(expert: ExpertSpec, sharing: ExpertSpec, registry: Registry) -> tuple[str, str] | None:
    """Return the wrong key of an expert and the problem. `sharing` is the first expert on the same server."""
    local, residency = expert.runtime in LOCAL_RUNTIMES, registry.residency
    used = next((key for key in _RESIDENCY_KEYS if getattr(expert, key)), None)
    if used and (residency is None or (not local and used != "stand_in")):
        return used, f"`{used}` is for local experts that share devices; declare `residency` with its devices"
    if residency is None:
        return None
    if expert.stand_in and (expert.stand_in == expert.name or expert.stand_in not in registry.expert_names):
        known = ", ".join(registry.expert_names)
        return "stand_in", f"the stand-in {expert.stand_in!r} is not another expert; known: {known}"
    if not local:
        return None
    devices = {device.name: device for device in residency.devices}
    home, levels = registry.device_of(expert), RUNTIMES[expert.runtime].sleep_levels
    if (expert.device is None and len(devices) > 1) or home not in devices:
        return "device", f"name its device, one of {', '.join(devices)}"
    if expert.gpus and devices[home].gpus:
        return "gpus", "its device declares `gpus`; leave them out here"
    if home != registry.device_of(sharing):
        return "device", f"it shares the server of {sharing.name!r}, which is on another device; name the same device"
    if expert.replicas > 1:
        return "replicas", "an expert that shares a device has one server; leave out `replicas` or `residency`"
    if expert.memory_gb is None:
        return "name", "an expert that shares a device needs memory_gb: the memory of its server while awake"
    if expert.sleep_level and expert.sleep_level not in levels:
        remedy = f"write {', '.join(map(str, sorted(levels)))}" if levels else "remove it: they are stopped instead"
        return "sleep_level", f"{expert.runtime} servers cannot sleep at level {expert.sleep_level}; {remedy}"
    return None


def _device_memory_problems(registry: Registry, residency: ResidencySpec) -> Problems:
    """Check that each device can hold its pinned experts and, at the same time, any other one."""
    for index, device in enumerate(residency.devices):
        here = [expert for expert in registry.experts if registry.device_of(expert) == device.name]
        memory, pinned = server_memory(here), {expert.server_key for expert in here if expert.pinned}
        free = device.memory_gb - sum(memory[key] for key in pinned)
        others = [(memory[expert.server_key], expert.name) for expert in here if expert.server_key not in pinned]
        largest, name = max(others, default=(0.0, ""))
        if free < max(largest, 0.0):
            needed = f", and {name!r} needs {largest:g}" if name else ""
            yield (
                ("residency", "devices", index, "memory_gb"),
                f"the pinned experts leave {free:g} of {device.memory_gb:g} GB of {device.name!r}{needed}; pin fewer, "
                "give the device more, or that expert a smaller or quantised model",
            )


def server_memory(experts: Iterable[ExpertSpec]) -> dict[ServerKey, float]:
    """Return the GB of each local server, which its experts share."""
    memory: dict[ServerKey, float] = {}
    for expert in (one for one in experts if one.runtime in LOCAL_RUNTIMES):
        memory[expert.server_key] = max(memory.get(expert.server_key, 0.0), expert.memory_gb or 0.0)
    return memory
