"""The messages between gateway processes and `coe up` about residency: one JSON object a line, both ways.

    gateway -> coe up   {"hold": 7, "expert": "law", "category": "law", "timeout": 60.0, "stand_in": ""}
                        {"end": 7}          the request ended, or is no longer held
    coe up -> gateway   {"granted": 7}
                        {"refused": 7, "reason": "...", "retry_after": 12.5}
                        {"tiers": {"law": {"tier": "awake", "held": 0, "switches": 3}}}     now and at every change

When a connection ends, its requests end too. Only the owner may enter the folder of the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson

MAX_LINE_BYTES = 2**20


def encode(message: dict[str, Any]) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


async def read_messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yields messages until the connection ends or brings an invalid one."""
    try:
        while line := await reader.readline():
            yield orjson.loads(line)
    except (OSError, ValueError):  # ValueError: no JSON, or a line without end
        return
