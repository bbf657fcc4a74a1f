"""Load experts.yaml into a `Registry`. Every problem is reported with file, line and the most similar known key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from coe.errors import ConfigError
from coe.registry import yaml_source
from coe.registry.checks import cross_checks, nearest
from coe.registry.specs import Registry
from coe.registry.yaml_source import KeyPath, YamlSource

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
