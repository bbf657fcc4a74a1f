"""What the gateway's processes and the fleet say to each other about residency: one JSON object a line, both ways.

    gateway -> fleet    {"hold": 7, "expert": "law", "category": "law", "within": 60.0, "spare": ""}
                        {"end": 7}          the request is over, or waits no longer
    fleet -> gateway    {"granted": 7}
                        {"refused": 7, "why": "...", "retry_after": 12.5}
                        {"tiers": {"law": {"tier": "awake", "held": 0, "switches": 3}}}     now and at every change

A connection that ends takes its requests with it. The socket lies in a folder that its owner alone may enter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson

LONGEST = 2**20
"""Bytes of one line."""


def line(message: dict[str, Any]) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Until the other side has gone, or says what is none."""
    try:
        while said := await reader.readline():
            yield orjson.loads(said)
    except (OSError, ValueError):  # ValueError: no JSON, or a line without end
        return
