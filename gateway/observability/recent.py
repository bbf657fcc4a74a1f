"""The latest requests of this process, for feedback that comes before the routing log has their records.

Finds one request, whose record may still be on its way to the routing log.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable

from coe.records.record import RoutingLog, RoutingRecord
from gateway.request.trace import Trace

REMEMBERED = 50_000
"""Requests, about 200 bytes each."""


class RecentRequests:
    """Tenants by request id, in memory; of several workers each has its own."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, str | None] = OrderedDict()

    def observe(self, trace: Trace) -> None:
        """Remember a finished request that was routed; others have no record and take no feedback."""
        if trace.decision is None:
            return
        self._tenants[trace.request_id] = trace.caller.tenant
        if len(self._tenants) > REMEMBERED:
            self._tenants.popitem(last=False)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._tenants

    def tenant(self, request_id: str) -> str | None:
        """The tenant of a remembered request, None where no keys are declared. Raises KeyError."""
        return self._tenants[request_id]


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
