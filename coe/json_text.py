"""JSON text in bytes: orjson where it can, the standard library for what orjson refuses.

Servers and clients in Python send NaN, Infinity, lone surrogates, integers beyond 64 bits and deep nesting. They pass
through CoE as they are where a client reads the answer.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Parses JSON. Raises ValueError."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise error from None


def dumps(value: Any) -> bytes:
    """Serializes a value that `loads` returned; NaN and Infinity may become null. Raises RecursionError."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return dumps_with_nan(value)


def dumps_with_nan(value: Any) -> bytes:
    """As `dumps`, but slower, and NaN and Infinity stay."""
    return json.dumps(value, separators=(",", ":")).encode()
