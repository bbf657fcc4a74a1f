"""What must fit together for experts to take turns on devices."""

from __future__ import annotations

from coe.registry.specs import ExpertSpec, Registry
from coe.registry.yaml_source import Located

_KEYS = ("device", "pinned", "sleep_level", "sibling")


def residency_checks(source: Located, registry: Registry) -> list[str]:
    """Every expert's own part, then what has to fit on each device."""
    problems = []
    for index, expert in enumerate(registry.experts):
        what = _problem(expert, registry)
        if what is not None:
            key, told = what
            problems.append(f"{source.at(('experts', index, key))}: {expert.name!r}: {told}")
    declared = registry.residency
    if declared is None or problems:
        return problems
    where = source.at(("residency", "hold"))
    if declared.hold < declared.max_wait:
        problems.append(f"{where}: hold must be at least max_wait ({declared.max_wait:g}), or requests end unheard")
    if registry.policy.hedge:
        where = source.at(("policy", "hedge"))
        problems.append(f"{where}: hedge would wake other experts for every wait; residency needs hedge: false")
    return problems + _fits(source, registry)


def _problem(expert: ExpertSpec, registry: Registry) -> tuple[str, str] | None:
    """The key at fault and what is wrong."""
    local = expert.runtime in ("transformers", "vllm")
    used = next((key for key in _KEYS if getattr(expert, key)), None)
    declared = registry.residency
    if used and (declared is None or (not local and used != "sibling")):
        return used, f"`{used}` is for local experts that take turns; declare `residency` with its devices"
    if declared is None:
        return None
    if expert.sibling and (expert.sibling == expert.name or expert.sibling not in registry.expert_names):
        return (
            "sibling",
            f"the sibling {expert.sibling!r} is no other expert; known: {', '.join(registry.expert_names)}",
        )
    if not local:
        return None
    names = [device.name for device in declared.devices]
    if (expert.device is None and len(names) > 1) or expert.device not in (None, *names):
        return "device", f"name its device, one of {', '.join(names)}"
    if expert.replicas > 1:
        return "replicas", "experts that take turns have one server each; leave out `replicas` or `residency`"
    if expert.memory_gb is None:
        return "name", "experts that take turns need memory_gb: what its server takes of the device when awake"
    if expert.sleep_level and expert.runtime != "vllm":
        return "sleep_level", "only vLLM servers can sleep; others are stopped"
    return None


def _fits(source: Located, registry: Registry) -> list[str]:
    assert registry.residency is not None
    problems = []
    for index, device in enumerate(registry.residency.devices):
        where = source.at(("residency", "devices", index, "memory_gb"))
        there = [e for e in registry.experts if e.memory_gb and registry.device_of(e) == device.name]
        pinned = {(e.model, str(e.options), e.gpus): e.memory_gb or 0.0 for e in there if e.pinned}
        free = device.memory_gb - sum(pinned.values())
        largest = max(there, key=lambda e: e.memory_gb or 0.0, default=None)
        if largest is not None and (largest.memory_gb or 0.0) > device.memory_gb:
            problems.append(
                f"{where}: {device.name!r} has {device.memory_gb:g} GB and {largest.name!r} alone needs "
                f"{largest.memory_gb:g}; give the device more, or that expert a smaller or quantised model"
            )
            continue
        turns = [e for e in there if (e.model, str(e.options), e.gpus) not in pinned]
        largest = max(turns, key=lambda e: e.memory_gb or 0.0, default=None)
        if free < 0 or (largest is not None and (largest.memory_gb or 0.0) > free):
            told = "" if largest is None else f", and {largest.name!r} needs {largest.memory_gb:g}"
            problems.append(f"{where}: the pinned experts leave {free:g} GB of {device.name!r}{told}; pin fewer")
    return problems
