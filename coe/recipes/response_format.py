"""Reads an answer only if it has the form that `response_format` demands: a JSON object, or JSON that matches a schema.

Schemas come from clients and are checked on the event loop, so one check takes at most MAX_STEPS. No library has such a
bound: they compile regular expressions for seconds, and take exponential time for some keywords. The keywords that
`_Check` does not read, such as `pattern`, allow every value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import orjson

from coe.recipes.draft import FinalAnswer

MAX_STEPS = 10_000
"""Keywords, names and values that one check reads, at most: about 10 ms. An answer whose check needs more counts."""


def in_demanded_form(final_answer: FinalAnswer, fields: Mapping[str, Any]) -> FinalAnswer:
    """Return a reader that gives None for an answer without the form that the request's `fields` demand."""
    demanded = fields.get("response_format")
    if not isinstance(demanded, dict) or demanded.get("type") not in ("json_object", "json_schema"):
        return final_answer
    schema: Any = {"type": "object"}
    if demanded["type"] == "json_schema":
        named = demanded.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None

    def read(text: str) -> str | None:
        try:
            value = orjson.loads(text)
        except ValueError:
            return None
        return final_answer(text) if _matches(schema, value) else None

    return read


def _matches(schema: Any, value: Any) -> bool:
    """Return whether a value matches a schema; True if the schema is invalid, too deep, or takes too long to check."""
    try:
        return _Check(schema).allows(schema, value)
    except (_TooLongError, RecursionError, TypeError, AttributeError, LookupError):
        return True


class _TooLongError(Exception):
    """A check needs more than MAX_STEPS."""


class _Check:
    """One check of a value against the schema `root`. Its methods raise TypeError, AttributeError or LookupError if the
    schema is invalid."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._steps = MAX_STEPS

    def allows(self, schema: Any, value: Any) -> bool:
        """Return whether the root, or a part of it, allows the value."""
        self._spend(1)
        if not isinstance(schema, dict):
            return schema is not False
        if "$id" in schema and schema is not self._root:  # its references are relative to its own address
            return True
        self._spend(len(schema))
        either = schema.get("anyOf") or schema.get("oneOf")  # what one part ignores may exclude the others
        return (
            ("type" not in schema or self._has_type(schema["type"], value))
            and ("enum" not in schema or self._is_one_of(schema["enum"], value))
            and ("const" not in schema or self._is_one_of([schema["const"]], value))
            and all(_is_within(keyword, schema[keyword], value) for keyword in schema if keyword in _BOUNDS)
            and (not isinstance(value, dict) or self._allows_object(schema, value))
            and (not isinstance(value, list) or self._allows_items(schema, value))
            and ("$ref" not in schema or self.allows(self._target(schema["$ref"]), value))
            and all(self.allows(part, value) for part in schema.get("allOf", ()))
            and (not either or any(self.allows(part, value) for part in either))
        )

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise _TooLongError

    def _has_type(self, names: str | list[str], value: Any) -> bool:
        names = [names] if isinstance(names, str) else names
        self._spend(len(names))
        if type(value) in _NUMBERS:
            return "number" in names or ("integer" in names and value == value // 1)
        return type(value) in [_TYPES[name] for name in names]

    def _is_one_of(self, options: list[Any], value: Any) -> bool:
        """Of an object or array, only the type is compared."""
        self._spend(len(options) + (len(value) // 1000 if isinstance(value, str) else 0))
        if isinstance(value, dict | list):
            return any(type(option) is type(value) for option in options)
        return any(option == value and (type(option) is bool) is (type(value) is bool) for option in options)

    def _allows_object(self, schema: dict[str, Any], value: dict[str, Any]) -> bool:
        names, parts = schema.get("required", []), schema.get("properties", {})
        others = True if "patternProperties" in schema else schema.get("additionalProperties", True)
        self._spend(len(names) + len(value))
        return all(name in value for name in names) and all(
            self.allows(parts.get(name, others), item) for name, item in value.items()
        )

    def _allows_items(self, schema: dict[str, Any], value: list[Any]) -> bool:
        part, first = schema.get("items", True), len(schema.get("prefixItems", ()))
        self._spend(first)
        return (
            part is True
            or isinstance(part, list)
            or all(self.allows(part, item) for item in islice(value, first, None))
        )

    def _target(self, reference: str) -> Any:
        """Return the part that a pointer names; True, which allows everything, for another reference."""
        if reference != "#" and not reference.startswith("#/"):
            return True
        self._spend(len(reference) // 8)
        target = self._root
        for name in reference.split("/")[1:]:
            target = target[name.replace("~1", "/").replace("~0", "~")]
        return target


_NUMBERS = (int, float)
_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": float,
}
_BOUNDS: Mapping[str, tuple[tuple[type, ...], Callable[[float, float], bool]]] = {
    "minimum": (_NUMBERS, operator.ge),
    "maximum": (_NUMBERS, operator.le),
    "exclusiveMinimum": (_NUMBERS, operator.gt),
    "exclusiveMaximum": (_NUMBERS, operator.lt),
    "minLength": ((str,), operator.ge),
    "maxLength": ((str,), operator.le),
    "minItems": ((list,), operator.ge),
    "maxItems": ((list,), operator.le),
}


def _is_within(keyword: str, bound: float, value: Any) -> bool:
    types, holds = _BOUNDS[keyword]
    if type(value) not in types or type(bound) not in _NUMBERS:
        return True
    return holds(value if types is _NUMBERS else len(value), bound)
