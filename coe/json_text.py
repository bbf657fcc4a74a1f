"""Parses and writes JSON with orjson, and with the standard library where orjson refuses a value.

Servers and clients in Python send NaN, Infinity and lone surrogates, which orjson does not parse. `dumps` writes them,
but may write NaN and Infinity as null; `dumps_with_nan` keeps these. Integers beyond 64 bits become floats.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Parse JSON. Raises ValueError."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise error from None


def dumps(value: Any) -> bytes:
    """Serialize a value that `loads` returned. NaN and Infinity may become null. Raises RecursionError."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return dumps_with_nan(value)


def dumps_with_nan(value: Any) -> bytes:
    """Serialize a value with NaN and Infinity unchanged, more slowly than `dumps`. Raises RecursionError."""
    return json.dumps(value, separators=(",", ":")).encode()
