"""Checks `residency` in experts.yaml: the devices, the experts' residency keys, and whether the experts fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coe.registry.experts import ExpertSpec, ServerKey
from coe.registry.runtimes import LOCAL_RUNTIMES, RUNTIMES
from coe.registry.sections import ANY_DEVICE, DeviceSpec, ResidencySpec
from coe.registry.specs import Registry
from coe.registry.yaml_source import Problems

_RESIDENCY_KEYS = ("device", "pinned", "sleep_level", "stand_in")
"""Keys of an expert that need the section `residency`."""


def residency_problems(registry: Registry) -> Problems:
    """Check the residency keys of every expert; if they are right, check that the experts fit on their devices."""
    if registry.residency is not None and (devices := [*_device_problems(registry.residency)]):
        yield from devices
        return
    wrong = False
    for index, expert in enumerate(registry.experts):
        if (found := _residency_problem(expert, registry)) is not None:
            wrong = True
            yield ("experts", index, found[0]), f"{expert.name!r}: {found[1]}"
    residency = registry.residency
    if residency is None or wrong:
        return
    if residency.wait_timeout < residency.max_wait:
        yield (
            ("residency", "wait_timeout"),
            f"wait_timeout must be at least max_wait ({residency.max_wait:g}), or requests expire too soon",
        )
    if split := [*_split_server_problems(registry)]:
        yield from split
        return
    yield from _device_memory_problems(registry)


def _residency_problem(expert: ExpertSpec, registry: Registry) -> tuple[str, str] | None:
    """Return the wrong key of an expert and the problem."""
    local = expert.runtime in LOCAL_RUNTIMES
    used = next((key for key in _RESIDENCY_KEYS if getattr(expert, key)), None)
    residency = registry.residency
    if used and (residency is None or (not local and used != "stand_in")):
        return used, f"`{used}` is for local experts that share devices; declare `residency` with its devices"
    if residency is None:
        return None
    if expert.stand_in and (expert.stand_in == expert.name or expert.stand_in not in registry.expert_names):
        known = ", ".join(registry.expert_names)
        return "stand_in", f"the stand-in {expert.stand_in!r} is not another expert; known: {known}"
    if not local:
        return None
    if (problem := _placement_problem(expert, registry)) is not None:
        return problem
    if expert.replicas > 1:
        return "replicas", "an expert that shares a device has one server; leave out `replicas` or `residency`"
    if expert.memory_gb is None:
        return "name", "an expert that shares a device needs memory_gb: the memory of its server while awake"
    if expert.sleep_level and expert.sleep_level not in (levels := RUNTIMES[expert.runtime].sleep_levels):
        remedy = f"write {', '.join(map(str, sorted(levels)))}" if levels else "remove it: they are stopped instead"
        return "sleep_level", f"{expert.runtime} servers cannot sleep at level {expert.sleep_level}; {remedy}"
    return None


def _placement_problem(expert: ExpertSpec, registry: Registry) -> tuple[str, str] | None:
    """Return the wrong key of an expert's place and the problem."""
    assert registry.residency is not None
    devices = {device.name: device for device in registry.residency.devices}
    named = registry.devices_of(expert)
    if (expert.device is None and len(devices) > 1) or not devices.keys() >= set(named):
        return "device", f"name its device, one of {', '.join(devices)}"
    if expert.gpus and any(devices[name].gpus for name in named):
        return "gpus", "its device declares `gpus`; leave them out here"
    return _choice_problem(expert, [devices[name] for name in named]) if len(named) > 1 else None


def _choice_problem(expert: ExpertSpec, devices: Sequence[DeviceSpec]) -> tuple[str, str] | None:
    """Return the setting that prevents residency from choosing among several devices for an expert."""
    names = [device.name for device in devices]
    if len(set(names)) < len(names):
        return "device", f"a device is named twice: {', '.join(names)}"
    if expert.pinned:
        return "device", "a pinned expert stays on its device; name one"
    if not RUNTIMES[expert.runtime].gpus or expert.base_url:
        what = "an Ollama that runs already" if expert.base_url else f"{expert.runtime} servers"
        return "device", f"`device` names several, and {what} cannot be confined to one of them; name one"
    if without := next((device.name for device in devices if not device.gpus), None):
        return "device", f"its server cannot be confined to {without!r}; declare the `gpus` of this device"
    if len({len(device.gpus) for device in devices}) > 1:
        return "device", f"{_quoted(names)} have different numbers of GPUs; name devices of one kind"
    return None


def _split_server_problems(registry: Registry) -> Problems:
    """Check that all experts of a server name its devices."""
    first: dict[ServerKey, ExpertSpec] = {}
    for index, expert in enumerate(registry.experts):
        other = first.setdefault(expert.server_key, expert)
        here, there = registry.devices_of(expert), registry.devices_of(other)
        if set(here) != set(there):
            yield (
                ("experts", index, "device"),
                f"{expert.name!r} is on {_quoted(here)} and shares the server of {other.name!r}, which is on "
                f"{_quoted(there)}; name the same device",
            )


def _quoted(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _device_memory_problems(registry: Registry) -> Problems:
    """Check that each device can hold its pinned experts and, at the same time, any other one."""
    assert registry.residency is not None
    for index, device in enumerate(registry.residency.devices):
        where = ("residency", "devices", index, "memory_gb")
        here = [expert for expert in registry.experts if device.name in registry.devices_of(expert)]
        servers, pinned = server_memory(here), {expert.server_key for expert in here if expert.pinned}
        sizes = [(servers[expert.server_key], expert) for expert in here]
        free = device.memory_gb - sum(servers[key] for key in pinned)
        largest, name = max(((size, expert.name) for size, expert in sizes), key=lambda one: one[0], default=(0.0, ""))
        if largest > device.memory_gb:
            yield (
                where,
                f"{device.name!r} has {device.memory_gb:g} GB and {name!r} alone needs {largest:g}; give the device "
                "more, or that expert a smaller or quantised model",
            )
            continue
        unpinned = ((size, expert.name) for size, expert in sizes if expert.server_key not in pinned)
        largest, name = max(unpinned, key=lambda one: one[0], default=(0.0, ""))
        if free < 0 or largest > free:
            needed = f", and {name!r} needs {largest:g}" if name else ""
            yield where, f"the pinned experts leave {free:g} GB of {device.name!r}{needed}; pin fewer"


def server_memory(experts: Iterable[ExpertSpec]) -> dict[ServerKey, float]:
    """Return the GB of each server, which its experts share."""
    memory: dict[ServerKey, float] = {}
    for expert in experts:
        memory[expert.server_key] = max(memory.get(expert.server_key, 0.0), expert.memory_gb or 0.0)
    return memory


def _device_problems(residency: ResidencySpec) -> Problems:
    """Check the devices themselves: names and GPUs are those of one device."""
    names, gpus = set[str](), dict[int, str]()
    for index, device in enumerate(residency.devices):
        where = ("residency", "devices", index)
        if device.name in names or device.name == ANY_DEVICE:
            why = "stands for all devices" if device.name == ANY_DEVICE else "is already used"
            yield (*where, "name"), f"the name {device.name!r} {why}; choose another name for the device"
        names.add(device.name)
        for gpu in device.gpus:
            if (other := gpus.setdefault(gpu, device.name)) != device.name or device.gpus.count(gpu) > 1:
                yield (*where, "gpus"), f"GPU {gpu} is named twice, by {other!r} and {device.name!r}; name it once"
