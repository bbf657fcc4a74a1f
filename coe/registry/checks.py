"""What experts.yaml must hold beyond the shape of each entry: names that fit together, experts that can be run.

What must fit together for experts to take turns on devices.
"""

from __future__ import annotations

from difflib import get_close_matches

import orjson

from coe.core import GENERAL
from coe.registry.specs import AUTO, ExpertSpec, Registry
from coe.registry.yaml_source import Place, YamlSource

_KEYS = ("device", "pinned", "sleep_level", "stand_in")


def residency_checks(source: YamlSource, registry: Registry) -> list[str]:
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
    if used and (declared is None or (not local and used != "stand_in")):
        return used, f"`{used}` is for local experts that take turns; declare `residency` with its devices"
    if declared is None:
        return None
    if expert.stand_in and (expert.stand_in == expert.name or expert.stand_in not in registry.expert_names):
        return (
            "stand_in",
            f"the sibling {expert.stand_in!r} is no other expert; known: {', '.join(registry.expert_names)}",
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


def _fits(source: YamlSource, registry: Registry) -> list[str]:
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


def cross_checks(source: YamlSource, registry: Registry) -> list[str]:
    problems = _duplicates(source, ("categories",), registry.category_names)
    problems += _duplicates(source, ("experts",), registry.expert_names)
    if GENERAL not in registry.category_names:
        problems.append(f"{source.at(('categories',))}: a category named {GENERAL!r} is needed, for unsure requests")
    if registry.policy.cost_weight_limits[0] > registry.policy.cost_weight_limits[1]:
        problems.append(f"{source.at(('policy', 'cost_weight_limits'))}: cost_weight_limits must be [lowest, highest]")
    for index, expert in enumerate(registry.experts):
        problems += _check_expert(source, ("experts", index), expert)
    for category, expert_name in registry.assignment.items():
        where = source.at(("assignment", category))
        if category not in registry.category_names:
            problems.append(f"{where}: unknown category {category!r}{nearest(category, registry.category_names)}")
        if expert_name not in registry.expert_names:
            problems.append(f"{where}: unknown expert {expert_name!r}{nearest(expert_name, registry.expert_names)}")
    if GENERAL not in registry.assignment:
        problems.append(f"{source.at(('assignment',))}: assign an expert to {GENERAL!r}; it answers unsure requests")
    if (general := registry.assignment.get(GENERAL)) in {e.name for e in registry.experts if "chat" not in e.spoken}:
        problems.append(f"{source.at(('assignment', GENERAL))}: {general!r} answers {GENERAL!r}, so it must speak chat")
    problems += _duplicates(source, ("access", "keys"), tuple(key.name for key in registry.access.keys))
    digests = tuple(key.sha256 for key in registry.access.keys)
    problems += _duplicates(source, ("access", "keys"), digests, field="sha256")
    return problems + residency_checks(source, registry) + _check_memory(source, registry)


def _duplicates(source: YamlSource, section: Place, names: tuple[str, ...], *, field: str = "name") -> list[str]:
    first: dict[str, int] = {}
    problems = []
    for index, name in enumerate(names):
        if name in first:
            earlier = source.at((*section, first[name], field)).rsplit(":", 1)[1]
            problems.append(
                f"{source.at((*section, index, field))}: the {field} {name!r} is already used on line {earlier}"
            )
        first.setdefault(name, index)
    return problems


def _check_expert(source: YamlSource, place: Place, expert: ExpertSpec) -> list[str]:
    problems = []
    if expert.name == AUTO:
        problems.append(
            f"{source.at((*place, 'name'))}: {AUTO!r} is what clients write to be routed; pick another name"
        )
    problems += _check_address(source, place, expert)
    key = None if expert.api_key is None else expert.api_key.get_secret_value()
    if key is not None and (not key or not key.isprintable() or not key.isascii()):
        where = source.at((*place, "api_key"))
        problems.append(
            f"{where}: the api_key of {expert.name!r} is empty or holds a line break or other odd character"
        )
    try:
        orjson.dumps(expert.parameters)
    except orjson.JSONEncodeError as error:
        problems.append(f"{source.at((*place, 'parameters'))}: parameters cannot be sent as JSON: {error}")
    if "model" in expert.parameters or "messages" in expert.parameters or "stream" in expert.parameters:
        where = source.at((*place, "parameters"))
        problems.append(f"{where}: parameters may not set model, messages or stream; they come from the request")
    return problems


def _check_address(source: YamlSource, place: Place, expert: ExpertSpec) -> list[str]:
    if expert.base_url and expert.base_urls:
        return [f"{source.at((*place, 'base_urls'))}: write base_url for one server or base_urls for several, not both"]
    if expert.runtime == "external" and not expert.addresses:
        return [f"{source.at(place)}: expert {expert.name!r} is external, so it needs a base_url"]
    if expert.runtime in ("transformers", "vllm") and expert.addresses:
        where = source.at((*place, "base_url" if expert.base_url else "base_urls"))
        return [f"{where}: {expert.name!r} is started here and gets its own address; use runtime: external instead"]
    if expert.runtime in ("external", "litellm") and expert.replicas > 1:
        where = source.at((*place, "replicas"))
        return [f"{where}: {expert.name!r} is not started here; name its replicas in base_urls"]
    if expert.runtime == "litellm" and len(expert.addresses) > 1:
        return [f"{source.at((*place, 'base_urls'))}: an expert of runtime litellm has one base_url at most"]
    return []


def _check_memory(source: YamlSource, registry: Registry) -> list[str]:
    """Experts that name the same model share one process, so its memory counts once."""
    if registry.budget.memory_gb is None or registry.residency is not None:
        return []
    servers: dict[tuple[str, str, str, tuple[int, ...]], float] = {}
    for expert in registry.experts:
        if expert.runtime in ("transformers", "vllm"):
            key = (expert.runtime, expert.model, repr(sorted(expert.options.items())), expert.gpus)
            servers[key] = max(servers.get(key, 0.0), expert.memory_gb or 0.0)
    needed = sum(servers.values())
    if needed <= registry.budget.memory_gb:
        return []
    where = source.at(("budget", "memory_gb"))
    return [
        f"{where}: the local experts need {needed:g} GB together and memory_gb allows {registry.budget.memory_gb:g}; "
        "raise it, or declare `residency` and let them take turns"
    ]


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """What an error adds after an unknown word: the one it may have meant, or those that are known."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}" if known else ""
