"""One request in the routing log, whose record may still be on its way there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from coe.record import RoutingLog, RoutingRecord

LOOKS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Seconds before each look."""
_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")


async def found_soon(
    log: RoutingLog, request_id: str, *, counts: Callable[[RoutingRecord], bool] = lambda record: True
) -> RoutingRecord | None:
    """The record of that id, if it `counts`; whoever asks for one that does not waits as long as for none. An id that
    no gateway gives is not waited for. Raises LogError."""
    for pause in LOOKS if _REQUEST_ID.fullmatch(request_id) else LOOKS[:1]:
        await asyncio.sleep(pause)
        record = await log.find(request_id)
        if record is not None and counts(record):
            return record
    return None
