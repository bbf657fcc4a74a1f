"""A RoutingRecord as one line of JSON and back, across schema versions."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import orjson

from coe.errors import DamagedEntry, LogError
from coe.record import RoutingRecord

SCHEMA = 1
"""The newest schema this code reads and the one it writes."""

_KNOWN = frozenset(field.name for field in fields(RoutingRecord))
_REQUIRED = frozenset(field.name for field in fields(RoutingRecord) if field.default is MISSING)
_FLOATS = ("time", "confidence", "propensity", "routing_ms", "total_ms")


def encode(record: RoutingRecord) -> bytes:
    """UTF-8 JSON without line breaks; the embedding in base64. Raises LogError where JSON cannot say it."""
    try:
        return orjson.dumps(record, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise LogError(
            f"record {record.request_id!r} cannot be written as JSON: {error}; mend what fills it in"
        ) from None


def decode(line: bytes | str) -> RoutingRecord:
    """The record in `line`. Unknown keys are left out. Raises LogError for a newer schema, DamagedEntry otherwise."""
    try:
        values = orjson.loads(line)
        schema = values["schema"]
        if schema > SCHEMA:
            raise LogError(f"a record has schema {schema}, this CoE reads up to {SCHEMA}; upgrade the CoE that reads")
        return _record(values)
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as error:
        raise DamagedEntry(f"a damaged record ({type(error).__name__}: {error}); remove it from the log") from None


def intact(line: bytes | str) -> RoutingRecord | None:
    """The same, None for a damaged line: one entry that somebody else put there does not make a log unreadable."""
    try:
        return decode(line)
    except DamagedEntry:
        return None


def _record(values: dict[str, Any]) -> RoutingRecord:
    missing = _REQUIRED - values.keys()
    if missing:
        raise DamagedEntry(f"a damaged record lacks {', '.join(sorted(missing))}; remove it from the log")
    known = {name: value for name, value in values.items() if name in _KNOWN}
    known["candidates"] = tuple(known["candidates"])
    known["passages"] = tuple(known.get("passages", ()))
    known["worth"] = tuple(-math.inf if value is None else float(value) for value in known.get("worth", ()))
    known["price"] = tuple(map(float, known.get("price", ())))
    if known.get("needs") is not None:
        known["needs"] = tuple(known["needs"])
    if known.get("exploration") is not None:
        rate, loss = known["exploration"]
        known["exploration"] = float(rate), float(loss)
    known["probabilities"] = {name: _number(value) for name, value in known["probabilities"].items()}
    if known.get("plain") is not None:
        known["plain"] = {name: _number(value) for name, value in known["plain"].items()}
    known.update({name: _number(known[name]) for name in _FLOATS})
    embedding = known.get("embedding")
    if embedding is not None:
        known["embedding"] = base64.b64decode(embedding, validate=True)
    return RoutingRecord(**known)


def _number(value: float | None) -> float:
    """JSON has no NaN and no infinity, so both were written as null; a broken number must not pass for a good one."""
    return math.nan if value is None else float(value)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
