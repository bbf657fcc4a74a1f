"""The stored form of a RoutingRecord: one line of JSON, by a table of fields that is derived from its annotations.

JSON, SQLite columns, parquet, the API's schema and the reference page all follow the table `FIELDS`. Every log, the
spool and `coe log export` store records as JSON lines. Unknown keys are ignored and missing optional keys take their
defaults; a record of a newer schema is refused.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, cast, get_args, get_origin, get_type_hints

import orjson

from coe.errors import DamagedEntry, StoreError
from coe.records.record import FieldInfo, RecipeCall, RoutingRecord

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FieldType:
    """A type that fields may have.

    `name` is for documentation, `schema` is the JSON schema and `empty` the value without information. `read` converts
    a value from JSON or parquet and raises TypeError or ValueError for a value of another type.
    """

    name: str
    schema: Schema
    empty: Any
    read: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class RecordField:
    """One row of the table. `read` also accepts None if the field is optional."""

    name: str
    kind: FieldType
    optional: bool
    required: bool
    info: FieldInfo
    read: Callable[[Any], Any]

    @property
    def empty(self) -> Any:
        """The value without information, for redaction."""
        return None if self.optional else self.kind.empty

    @property
    def schema(self) -> Schema:
        """JSON schema of the value."""
        schema = {**self.kind.schema, "description": self.info.meaning}
        return schema | {"type": [schema["type"], "null"]} if self.optional else schema


def fields_of(declared: type) -> tuple[RecordField, ...]:
    """The table of a dataclass. Raises KeyError for a field of a type that has no FieldType."""
    hints = get_type_hints(declared, include_extras=True)
    return tuple(
        _field(one.name, hints[one.name], required=one.default is MISSING and one.default_factory is MISSING)
        for one in fields(declared)
    )


def schema_of(table: Sequence[RecordField]) -> Schema:
    """JSON schema of an object with these fields, all of them required."""
    return {
        "type": "object",
        "properties": {field.name: field.schema for field in table},
        "required": [field.name for field in table],
    }


def read_values(table: Sequence[RecordField], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the table's fields, from JSON or parquet; other keys are ignored. Raises ValueError."""
    found, name = dict[str, Any](), ""
    try:
        for field in table:
            if (name := field.name) in values:
                found[name] = field.read(values[name])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from None
    return found


def _field(name: str, hint: Any, *, required: bool) -> RecordField:
    info = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, FieldInfo)), FieldInfo(""))
    kind_type = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    optional = NoneType in get_args(kind_type) and get_origin(kind_type) is not tuple
    if optional:
        (kind_type,) = (one for one in get_args(kind_type) if one is not NoneType)
    kind = FIELD_TYPES[kind_type]
    read = (lambda value: None if value is None else kind.read(value)) if optional else kind.read
    return RecordField(name, kind, optional, required, info, read)


def _wrong(value: Any, expected: str) -> TypeError:
    """The error for a value of another type. It does not repeat the value, which may be a prompt."""
    return TypeError(f"{type(value).__name__} in place of {expected}")


def _exactly(kind: type, expected: str) -> Callable[[Any], Any]:
    """Returns a function that accepts values of this type only."""

    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _wrong(value, expected)
        return value

    return read


_text = _exactly(str, "a text")
_integer = _exactly(int, "a whole number")
_flag = _exactly(bool, "true or false")


def _number(value: Any) -> float:
    """JSON writes NaN and infinity as null. Null is read as NaN, so that it cannot pass for a number."""
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise _wrong(value, "a number")
    return float(value)


def _bytes(value: Any) -> bytes:
    return value if type(value) is bytes else base64.b64decode(value, validate=True)


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise _wrong(value, "a list")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, _sequence(value)))


def _numbers(value: Any) -> tuple[float, ...]:
    """In a list null is -inf, the only non-finite number in a record's lists."""
    return tuple(-math.inf if one is None else _number(one) for one in _sequence(value))


def _pair(value: Any) -> tuple[float, float]:
    first, second = _sequence(value)
    return _number(first), _number(second)


def _by_name(value: Any) -> dict[str, float]:
    """Convert an object (JSON) or a list of pairs (a parquet map)."""
    pairs = value.items() if isinstance(value, dict) else _sequence(value)
    return {_text(name): _number(number) for name, number in pairs}


def _calls(value: Any) -> tuple[RecipeCall, ...]:
    return tuple(RecipeCall(**read_values(CALL_FIELDS, _mapping(one))) for one in _sequence(value))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, "an object")
    return value


_NUMBER: Schema = {"type": ["number", "null"]}
FIELD_TYPES: dict[Any, FieldType] = {
    str: FieldType("text", {"type": "string"}, "", _text),
    bool: FieldType("boolean", {"type": "boolean"}, False, _flag),
    int: FieldType("integer", {"type": "integer"}, 0, _integer),
    float: FieldType("number", {"type": "number"}, 0.0, _number),
    bytes: FieldType("base64", {"type": "string", "contentEncoding": "base64"}, b"", _bytes),
    tuple[str, ...]: FieldType("list of texts", {"type": "array", "items": {"type": "string"}}, (), _texts),
    tuple[float, ...]: FieldType("list of numbers", {"type": "array", "items": _NUMBER}, (), _numbers),
    tuple[float, float]: FieldType(
        "two numbers", {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}, (0.0, 0.0), _pair
    ),
    Mapping[str, float]: FieldType(
        "numbers by name", {"type": "object", "additionalProperties": _NUMBER}, {}, _by_name
    ),
}
"""Every type of a field, with or without None."""
CALL_FIELDS = fields_of(RecipeCall)
"""The table of one call of a recipe."""
# Added after the table, because the fields of RecipeCall are looked up in it.
FIELD_TYPES[tuple[RecipeCall, ...]] = FieldType(
    "list of calls", {"type": "array", "items": schema_of(CALL_FIELDS)}, (), _calls
)

FIELDS = fields_of(RoutingRecord)
"""The table of the routing log."""
COLUMNS = tuple(field.name for field in FIELDS if field.info.column)
"""Fields with their own column in a SQLite log; `LogQuery` filters by them."""


SCHEMA = 1
"""The schema that this code writes, and the newest that it reads."""

_REQUIRED = frozenset(field.name for field in FIELDS if field.required)


def encode(record: RoutingRecord) -> bytes:
    """The stored form: UTF-8 JSON without line breaks, and without optional fields that have their defaults. Raises
    StoreError for a value that JSON cannot represent."""
    try:
        return to_json(_stored(record))
    except TypeError as error:
        raise StoreError(f"record {record.request_id!r} cannot be written as JSON: {error}") from None


def to_json(values: RoutingRecord | Mapping[str, Any]) -> bytes:
    """A record with all its fields, or some fields of one by name, as JSON; bytes in base64. Raises TypeError."""
    return orjson.dumps(values, default=_to_jsonable, option=orjson.OPT_SERIALIZE_NUMPY)


def _fields_to_store() -> Callable[[RoutingRecord], dict[str, Any]]:
    """Compile the function that returns the fields to store by name; a loop over the fields takes twice as long.

    A value that equals the default but is another object is stored too; this only takes space.
    """
    always = [name for name in (field.name for field in FIELDS) if name in _REQUIRED or name == "schema"]
    found: dict[str, Any] = {}
    lines = ["def stored(record):", f"    found = {{{', '.join(f'{name!r}: record.{name}' for name in always)}}}"]
    for one in fields(RoutingRecord):
        if one.name not in always:
            found[f"default_{one.name}"] = one.default
            lines.append(f"    if (value := record.{one.name}) is not default_{one.name}: found[{one.name!r}] = value")
    exec("\n".join([*lines, "    return found"]), found)  # noqa: S102  (names of declared fields only)
    return cast(Callable[[RoutingRecord], dict[str, Any]], found["stored"])


_stored = _fields_to_store()


def decode(line: bytes | str) -> RoutingRecord:
    """The record in `line`, without unknown keys. Raises StoreError for a newer schema, DamagedEntry for invalid JSON
    or fields."""
    try:
        values = orjson.loads(line)
        schema = values["schema"]
        if schema > SCHEMA:
            raise StoreError(f"a record has schema {schema}, this CoE reads up to {SCHEMA}; upgrade the CoE that reads")
        return _record(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedEntry(f"a damaged record ({type(error).__name__}: {error}); remove it from the log") from None


def decode_or_none(line: bytes | str) -> RoutingRecord | None:
    """Like `decode`, but None for a damaged line, so that one foreign entry does not make a log unreadable."""
    try:
        return decode(line)
    except DamagedEntry:
        return None


def _record(values: dict[str, Any]) -> RoutingRecord:
    if missing := _REQUIRED - values.keys():
        raise DamagedEntry(f"a damaged record lacks {', '.join(sorted(missing))}; remove it from the log")
    return RoutingRecord(**read_values(FIELDS, values))


def _to_jsonable(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
