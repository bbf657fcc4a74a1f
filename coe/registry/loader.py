"""experts.yaml -> Registry: strict parsing, every mistake with file, line and the nearest known word."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from coe.errors import ConfigError
from coe.registry import yaml_source
from coe.registry.checks import cross_checks, nearest
from coe.registry.specs import Registry
from coe.registry.yaml_source import Place, YamlSource

ENTRY = "entry"
"""What the problems of a new expert's entry are named by, in place of a file."""
DEEPEST = 12


def load(path: Path, *, environ: Mapping[str, str]) -> Registry:
    """Read and check a declaration. Raises ConfigError holding every problem found, each `file:line: what`."""
    return _checked(*yaml_source.with_variables(yaml_source.read(path), environ))


def load_with(path: Path, entry: str, *, environ: Mapping[str, str]) -> Registry:
    """What would be declared with one expert more, whose `entry` is YAML as it would stand under `experts`. Variables
    in it stay as they stand, so nothing of the environment can be asked through it. Raises ConfigError as `load` does;
    problems of the entry are `entry:line: what`."""
    source, problems = yaml_source.with_variables(yaml_source.read(path), environ)
    if not isinstance(source.value, dict) or not isinstance(source.value.get("experts"), list):
        return _checked(source, problems)
    return _checked(yaml_source.extended(source, "experts", _one(entry)), problems)


def _one(entry: str) -> YamlSource:
    part = yaml_source.simple(entry, ENTRY, depth=DEEPEST)
    if isinstance(part.value, list) and len(part.value) == 1:
        part = yaml_source.inside(part, (0,))
    if not isinstance(part.value, dict):
        raise ConfigError(f"{ENTRY}:1: expected one expert: `- name: ...` and its other keys below")
    return part


def _checked(source: YamlSource, problems: list[str]) -> Registry:
    if not isinstance(source.value, dict):
        raise ConfigError(f"{source.file}:1: expected the keys {', '.join(Registry.model_fields)}")
    try:  # a section whose lines are all commented out is an empty one
        registry = Registry.model_validate({key: item for key, item in source.value.items() if item is not None})
    except ValidationError as error:
        problems += [_explain(source, item["loc"], item["type"], item["msg"]) for item in error.errors()]
        raise ConfigError(*problems) from None
    problems += cross_checks(source, registry)
    if problems:
        raise ConfigError(*problems)
    return registry


def schema() -> dict[str, Any]:
    """The JSON schema of experts.yaml, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Registry.model_json_schema()


def _explain(source: YamlSource, place: Place, kind: str, message: str) -> str:
    where = ".".join(str(step) for step in place)
    if kind == "extra_forbidden":
        return f"{source.at(place)}: unknown key {str(place[-1])!r}{nearest(str(place[-1]), _keys_at(place[:-1]))}"
    if kind == "missing":
        return f"{source.at(place)}: {where} is missing"
    return f"{source.at(place)}: {where}: {message[0].lower()}{message[1:]}"


def _keys_at(place: Place) -> list[str]:
    """The keys the model at a place knows."""
    model: Any = Registry
    for step in place:
        if isinstance(step, str) and step in model.model_fields:
            annotation = model.model_fields[step].annotation
            models = [
                t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
            ]
            if not models:
                return []
            model = models[0]
    return list(model.model_fields)
