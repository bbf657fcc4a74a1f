"""JSON as servers write it: Python's own writer lets NaN, Infinity and lone surrogates pass, and clients read them."""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Raises ValueError. What is JSON costs no more than orjson takes."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise error from None


def dumps(value: Any) -> bytes:
    """As it was read: orjson makes null of NaN, and refuses lone surrogates."""
    return json.dumps(value, separators=(",", ":")).encode()
