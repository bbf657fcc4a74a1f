"""Finds one request, whose record may still be on its way to the routing log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from coe.records.record import RoutingLog, RoutingRecord
from gateway.observability.recent import RecentRequests

LOOKS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Seconds before each look."""
_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")


async def found_soon(
    log: RoutingLog, request_id: str, *, counts: Callable[[RoutingRecord], bool] = lambda record: True
) -> RoutingRecord | None:
    """The record of that id, if it `counts`; whoever asks for one that does not waits as long as for none. An id that
    no gateway gives is not waited for. Raises LogError."""
    for pause in _pauses(request_id):
        await asyncio.sleep(pause)
        record = await log.find(request_id)
        if record is not None and counts(record):
            return record
    return None


async def tenant_soon(
    log: RoutingLog, recent: RecentRequests, request_id: str, *, counts: Callable[[str | None], bool]
) -> tuple[str | None] | None:
    """The tenant of the request of that id, in a tuple; None for no such request, or for one whose tenant does not
    `count`, which takes as long. A request of this process is found before the log has its record. Raises LogError."""
    for pause in _pauses(request_id):
        await asyncio.sleep(pause)
        if request_id in recent and counts(recent.tenant(request_id)):
            return (recent.tenant(request_id),)
        record = await log.find(request_id)
        if record is not None and counts(record.tenant):
            return (record.tenant,)
    return None


def _pauses(request_id: str) -> tuple[float, ...]:
    return LOOKS if _REQUEST_ID.fullmatch(request_id) else LOOKS[:1]
