"""Checks across sections of experts.yaml: names that must match, experts that can be run, memory that must fit.

Each check returns one line per problem, `file:line: problem`. Checks of single values are part of the models
(`specs`, `policy`, `access`, `retrieval`).

Load experts.yaml into a `Registry`. Every problem is reported with file, line and the most similar known key.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import orjson
from pydantic import BaseModel, ValidationError

from coe.core import GENERAL
from coe.errors import ConfigError
from coe.registry import yaml_source
from coe.registry.specs import AUTO, ExpertSpec, Registry
from coe.registry.yaml_source import KeyPath, YamlSource

_LOCAL_RUNTIMES = ("transformers", "vllm")
_RESIDENCY_KEYS = ("device", "pinned", "sleep_level", "stand_in")
"""Keys of an expert that need the section `residency`."""
_RESERVED_PARAMETERS = frozenset({"model", "messages", "stream"})


def cross_checks(source: YamlSource, registry: Registry) -> list[str]:
    """Return all problems of a declaration whose single values are valid."""
    problems = _duplicates(source, ("categories",), registry.category_names)
    problems += _duplicates(source, ("experts",), registry.expert_names)
    if GENERAL not in registry.category_names:
        problems.append(
            f"{source.at(('categories',))}: a category named {GENERAL!r} is required, for uncertain requests"
        )
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
        problems.append(f"{source.at(('assignment',))}: assign an expert to {GENERAL!r}; it answers uncertain requests")
    if (general := registry.assignment.get(GENERAL)) in {
        e.name for e in registry.experts if "chat" not in e.supported_apis
    }:
        problems.append(
            f"{source.at(('assignment', GENERAL))}: {general!r} answers {GENERAL!r}, so it must support the chat API"
        )
    problems += _duplicates(source, ("access", "keys"), tuple(key.name for key in registry.access.keys))
    digests = tuple(key.sha256 for key in registry.access.keys)
    problems += _duplicates(source, ("access", "keys"), digests, field="sha256")
    return problems + _residency_problems(source, registry) + _check_memory(source, registry)


def _duplicates(source: YamlSource, section: KeyPath, names: tuple[str, ...], *, field: str = "name") -> list[str]:
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


def _check_expert(source: YamlSource, path: KeyPath, expert: ExpertSpec) -> list[str]:
    problems = []
    if expert.name == AUTO:
        problems.append(f"{source.at((*path, 'name'))}: the name {AUTO!r} is reserved; choose another name")
    problems += _check_address(source, path, expert)
    key = None if expert.api_key is None else expert.api_key.get_secret_value()
    if key is not None and (not key or not key.isprintable() or not key.isascii()):
        where = source.at((*path, "api_key"))
        problems.append(f"{where}: the api_key of {expert.name!r} is empty or holds characters that are not printable")
    try:
        orjson.dumps(expert.parameters)
    except orjson.JSONEncodeError as error:
        problems.append(f"{source.at((*path, 'parameters'))}: parameters cannot be sent as JSON: {error}")
    if _RESERVED_PARAMETERS & expert.parameters.keys():
        where = source.at((*path, "parameters"))
        problems.append(f"{where}: parameters may not set model, messages or stream; they come from the request")
    return problems


def _check_address(source: YamlSource, path: KeyPath, expert: ExpertSpec) -> list[str]:
    if expert.base_url and expert.base_urls:
        return [f"{source.at((*path, 'base_urls'))}: write base_url for one server or base_urls for several, not both"]
    if expert.runtime == "external" and not expert.addresses:
        return [f"{source.at(path)}: expert {expert.name!r} is external, so it needs a base_url"]
    if expert.runtime in _LOCAL_RUNTIMES and expert.addresses:
        where = source.at((*path, "base_url" if expert.base_url else "base_urls"))
        return [f"{where}: {expert.name!r} is a local expert and gets its own address; use runtime: external instead"]
    if expert.runtime in ("external", "litellm") and expert.replicas > 1:
        where = source.at((*path, "replicas"))
        return [f"{where}: {expert.name!r} is not a local expert; list its replicas in base_urls"]
    if expert.runtime == "litellm" and len(expert.addresses) > 1:
        return [f"{source.at((*path, 'base_urls'))}: an expert of runtime litellm has one base_url at most"]
    return []


def _check_memory(source: YamlSource, registry: Registry) -> list[str]:
    """Check the budget for memory. Experts of one model share a process, whose memory counts once."""
    if registry.budget.memory_gb is None or registry.residency is not None:
        return []
    servers: dict[tuple[str, str, str, tuple[int, ...]], float] = {}
    for expert in registry.experts:
        if expert.runtime in _LOCAL_RUNTIMES:
            key = (expert.runtime, expert.model, repr(sorted(expert.options.items())), expert.gpus)
            servers[key] = max(servers.get(key, 0.0), expert.memory_gb or 0.0)
    needed = sum(servers.values())
    if needed <= registry.budget.memory_gb:
        return []
    where = source.at(("budget", "memory_gb"))
    return [
        f"{where}: the local experts need {needed:g} GB together and memory_gb allows {registry.budget.memory_gb:g}; "
        "raise it, or declare `residency` to share the memory"
    ]


def _residency_problems(source: YamlSource, registry: Registry) -> list[str]:
    """Check the residency keys of every expert; if they are right, check that the experts fit on their devices."""
    problems = []
    for index, expert in enumerate(registry.experts):
        found = _residency_problem(expert, registry)
        if found is not None:
            key, problem = found
            problems.append(f"{source.at(('experts', index, key))}: {expert.name!r}: {problem}")
    residency = registry.residency
    if residency is None or problems:
        return problems
    where = source.at(("residency", "hold"))
    if residency.hold < residency.max_wait:
        problems.append(
            f"{where}: hold must be at least max_wait ({residency.max_wait:g}), or requests expire too soon"
        )
    if registry.policy.hedge:
        where = source.at(("policy", "hedge"))
        problems.append(f"{where}: hedge would wake another expert for every wait; residency needs hedge: false")
    return problems + _device_memory_problems(source, registry)


def _residency_problem(expert: ExpertSpec, registry: Registry) -> tuple[str, str] | None:
    """Return the wrong key of an expert and the problem."""
    local = expert.runtime in _LOCAL_RUNTIMES
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
    names = [device.name for device in residency.devices]
    if (expert.device is None and len(names) > 1) or expert.device not in (None, *names):
        return "device", f"name its device, one of {', '.join(names)}"
    if expert.replicas > 1:
        return "replicas", "an expert that shares a device has one server; leave out `replicas` or `residency`"
    if expert.memory_gb is None:
        return "name", "an expert that shares a device needs memory_gb: the memory of its server while awake"
    if expert.sleep_level and expert.runtime != "vllm":
        return "sleep_level", "only vLLM servers can sleep; others are stopped"
    return None


def _device_memory_problems(source: YamlSource, registry: Registry) -> list[str]:
    """Check that each device can hold its pinned experts and, beside them, any other one."""
    assert registry.residency is not None
    problems = []
    for index, device in enumerate(registry.residency.devices):
        where = source.at(("residency", "devices", index, "memory_gb"))
        experts = [e for e in registry.experts if e.memory_gb and registry.device_of(e) == device.name]
        pinned = {_server_key(e): e.memory_gb or 0.0 for e in experts if e.pinned}
        free = device.memory_gb - sum(pinned.values())
        largest = max(experts, key=lambda e: e.memory_gb or 0.0, default=None)
        if largest is not None and (largest.memory_gb or 0.0) > device.memory_gb:
            problems.append(
                f"{where}: {device.name!r} has {device.memory_gb:g} GB and {largest.name!r} alone needs "
                f"{largest.memory_gb:g}; give the device more, or that expert a smaller or quantised model"
            )
            continue
        unpinned = [e for e in experts if _server_key(e) not in pinned]
        largest = max(unpinned, key=lambda e: e.memory_gb or 0.0, default=None)
        if free < 0 or (largest is not None and (largest.memory_gb or 0.0) > free):
            needed = "" if largest is None else f", and {largest.name!r} needs {largest.memory_gb:g}"
            problems.append(f"{where}: the pinned experts leave {free:g} GB of {device.name!r}{needed}; pin fewer")
    return problems


def _server_key(expert: ExpertSpec) -> tuple[str, str, tuple[int, ...]]:
    """Experts with the same key share a server."""
    return expert.model, str(expert.options), expert.gpus


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return the end of an error message for an unknown word: the most similar known word, or all of them."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}" if known else ""


ENTRY_NAME = "entry"
"""Stands for the file name in problems of an entry that is not part of a file."""
MAX_ENTRY_DEPTH = 12


def load(path: Path, *, environ: Mapping[str, str]) -> Registry:
    """Read and validate a declaration. Raises ConfigError with all problems, each `file:line: problem`."""
    return _validated(*yaml_source.substitute_variables(yaml_source.read(path), environ))


def load_with_expert(path: Path, entry: str, *, environ: Mapping[str, str]) -> Registry:
    """Read a declaration and add one expert. `entry` is YAML as under the key `experts`.

    Environment variables in `entry` are not substituted, so it cannot read the environment. Raises ConfigError as
    `load` does; problems of the entry are `entry:line: problem`.
    """
    source, problems = yaml_source.substitute_variables(yaml_source.read(path), environ)
    if not isinstance(source.value, dict) or not isinstance(source.value.get("experts"), list):
        return _validated(source, problems)
    return _validated(source.with_item("experts", _parse_entry(entry)), problems)


def _parse_entry(entry: str) -> YamlSource:
    source = yaml_source.parse(entry, ENTRY_NAME, max_depth=MAX_ENTRY_DEPTH, aliases=False)
    if isinstance(source.value, list) and len(source.value) == 1:
        source = source.first_item()
    if not isinstance(source.value, dict):
        raise ConfigError(f"{ENTRY_NAME}:1: expected one expert: `- name: ...` and its other keys below")
    return source


def _validated(source: YamlSource, problems: list[str]) -> Registry:
    if not isinstance(source.value, dict):
        raise ConfigError(f"{source.file}:1: expected the keys {', '.join(Registry.model_fields)}")
    try:  # a section whose keys are all commented out is null and gets its defaults
        registry = Registry.model_validate({key: item for key, item in source.value.items() if item is not None})
    except ValidationError as error:
        problems += [_problem(source, item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise ConfigError(*problems) from None
    problems += cross_checks(source, registry)
    if problems:
        raise ConfigError(*problems)
    return registry


def schema() -> dict[str, Any]:
    """Return the JSON schema of experts.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Registry.model_json_schema()


def _problem(source: YamlSource, path: KeyPath, kind: str, message: str) -> str:
    key = ".".join(map(str, path))
    if kind == "extra_forbidden":
        return f"{source.at(path)}: unknown key {str(path[-1])!r}{nearest(str(path[-1]), _known_keys(path[:-1]))}"
    if kind == "missing":
        return f"{source.at(path)}: {key} is missing"
    return f"{source.at(path)}: {key}: {message[0].lower()}{message[1:]}"


def _known_keys(path: KeyPath) -> list[str]:
    """Return the keys that the model at a path defines."""
    model: Any = Registry
    for step in path:
        if isinstance(step, str) and step in model.model_fields:
            annotation = model.model_fields[step].annotation
            models = [
                t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
            ]
            if not models:
                return []
            model = models[0]
    return list(model.model_fields)
