"""Deeply nested JSON, and whether this interpreter can serialize it.

`json` of Python 3.11 fails at about a thousand levels. That of Python 3.13 serializes all that orjson parses (1,024).
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def nested(depth: int) -> Any:
    return orjson.loads(b"[" * depth + b"]" * depth)


def is_serializable(value: Any) -> bool:
    try:
        json.dumps(value)
    except RecursionError:
        return False
    return True
