"""Reads and writes JSON with NaN, Infinity and lone surrogates, which Python's own encoder emits and orjson refuses.

Servers send such JSON, and clients read it.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def loads(data: bytes) -> Any:
    """Parses JSON, with orjson if it can. Raises ValueError."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise error from None


def dumps(value: Any) -> bytes:
    """Serializes JSON that `loads` accepted: orjson turns NaN into null and rejects lone surrogates."""
    return json.dumps(value, separators=(",", ":")).encode()
