"""Converts a RoutingRecord to one line of JSON and back.

Every log, the spool and `coe log export` store records in this form. Unknown keys are ignored and missing optional keys
take their defaults; a record of a newer schema is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from coe.errors import DamagedEntry, LogError
from coe.records.fields import FIELDS, read_values
from coe.records.record import RoutingRecord

SCHEMA = 1
"""The schema that this code writes, and the newest that it reads."""

_REQUIRED = frozenset(field.name for field in FIELDS if field.required)


def encode(record: RoutingRecord) -> bytes:
    """UTF-8 JSON without line breaks; the embedding in base64. Raises LogError for a value that JSON cannot
    represent."""
    try:
        return to_json(record)
    except TypeError as error:
        raise LogError(f"record {record.request_id!r} cannot be written as JSON: {error}") from None


def to_json(values: RoutingRecord | Mapping[str, Any]) -> bytes:
    """A record, or some fields of one by name, as JSON. Raises TypeError."""
    return orjson.dumps(values, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def decode(line: bytes | str) -> RoutingRecord:
    """The record in `line`, without unknown keys. Raises LogError for a newer schema, DamagedEntry for invalid JSON or
    fields."""
    try:
        values = orjson.loads(line)
        schema = values["schema"]
        if schema > SCHEMA:
            raise LogError(f"a record has schema {schema}, this CoE reads up to {SCHEMA}; upgrade the CoE that reads")
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


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
