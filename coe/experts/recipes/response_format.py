"""Reads an answer only if it has the form that `response_format` demands: a JSON object, or JSON that matches a schema.

Schemas come from clients, so checking is bounded: patterns run in linear time, references to other documents are not
loaded, and a schema that is recursive or large when its references are expanded is not checked beyond JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from coe.experts.recipes.draft import FinalAnswer

MAX_SCHEMA_NODES = 5000
"""Values of a schema once its references are expanded, up to which it is checked."""
MAX_CHECK_WORK = 4_000_000
"""Values of the schema times characters of the answer, up to which it is checked: about 30 ms."""

Check = Callable[[Any, int], bool]
"""Returns whether a JSON value of this many characters has the demanded form."""


def in_demanded_form(final_answer: FinalAnswer, fields: Mapping[str, Any]) -> FinalAnswer:
    """Return a reader that gives None for an answer without the form that the request's `fields` demand."""
    check = _check_of(fields.get("response_format"))
    if check is None:
        return final_answer

    def read(text: str) -> str | None:
        try:
            value = orjson.loads(text)
        except ValueError:
            return None
        return final_answer(text) if check(value, len(text)) else None

    return read


def _check_of(demanded: Any) -> Check | None:
    """Return the check of a `response_format`; None if it demands no JSON."""
    kind = demanded.get("type") if isinstance(demanded, dict) else None
    if kind == "json_schema":
        named = demanded.get("json_schema")
        return _schema_check(named.get("schema") if isinstance(named, dict) else None)
    return _is_object if kind == "json_object" else None


def _is_object(value: Any, size: int) -> bool:
    return isinstance(value, dict)


def _schema_check(schema: Any) -> Check:
    """Return the check against a schema; any JSON passes if the schema cannot be used."""
    import jsonschema_rs

    try:
        nodes = _expanded_size(schema, schema, (), MAX_SCHEMA_NODES) if isinstance(schema, dict) else math.inf
        if nodes > MAX_SCHEMA_NODES:
            return lambda value, size: True
        validator = jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions())
    except (ValueError, RecursionError, jsonschema_rs.ReferencingError):  # invalid, too deep, or needs backtracking
        return lambda value, size: True
    return lambda value, size: nodes * size > MAX_CHECK_WORK or validator.is_valid(value)


def _expanded_size(node: Any, root: Mapping[str, Any], path: tuple[str, ...], limit: int) -> int:
    """Count the values of a schema with its references expanded, up to the first number above `limit`.

    References that this function might resolve otherwise than the validator does count as more than the limit: those to
    no place in the schema, inside their own target, with escapes of URLs, or below a part with its own id.
    """
    if not isinstance(node, dict | list):
        return 1
    size = 1
    for child in node.values() if isinstance(node, dict) else node:
        size += _expanded_size(child, root, path, limit - size)
        if size > limit:
            return size
    if isinstance(node, list):
        return size
    has_own_base = node is not root and any(isinstance(node.get(key), str) for key in ("$id", "id"))
    if has_own_base or "$dynamicRef" in node or "$recursiveRef" in node:
        return limit + 1
    if isinstance(reference := node.get("$ref"), str):
        target = None if reference in path else _target(reference, root)
        if target is None:
            return limit + 1
        size += _expanded_size(target, root, (*path, reference), limit - size)
    return size


def _target(reference: str, root: Mapping[str, Any]) -> Any:
    """Return the part of the schema that a JSON pointer names; None if there is none, or it has escapes of URLs."""
    if not reference.startswith("#/") or "%" in reference:
        return None
    found: Any = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        found = found.get(key) if isinstance(found, dict) else None
    return found
