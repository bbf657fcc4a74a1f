"""Finds a request by its id, although its record may still be on its way to the routing log.

RecentRequests remembers the latest requests of this process; `find_record` and `find_tenant` also retry the log. A
request of another tenant takes as long as an unknown one.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Callable

from coe.records.record import RoutingLog, RoutingRecord
from gateway.request.trace import Trace

MAX_REQUESTS = 50_000
"""Requests that are remembered, about 200 bytes each."""


class RecentRequests:
    """Tenants by request id, in memory; each worker process has its own."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, str | None] = OrderedDict()

    def observe(self, trace: Trace) -> None:
        """Remembers a routed request; others have no record and accept no feedback."""
        if trace.decision is None:
            return
        self._tenants[trace.request_id] = trace.caller.tenant
        if len(self._tenants) > MAX_REQUESTS:
            self._tenants.popitem(last=False)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._tenants

    def tenant(self, request_id: str) -> str | None:
        """The tenant of a remembered request, None if no keys are declared. Raises KeyError."""
        return self._tenants[request_id]


LOOKUP_DELAYS_SECONDS = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Delay before each lookup."""
_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")


async def find_record(
    log: RoutingLog, request_id: str, *, counts: Callable[[RoutingRecord], bool] = lambda record: True
) -> RoutingRecord | None:
    """The record of that id, if it `counts`. A record that does not count takes as long as a missing one. An id that no
    gateway issues is looked up once. Raises LogError."""
    for pause in _delays(request_id):
        await asyncio.sleep(pause)
        record = await log.find(request_id)
        if record is not None and counts(record):
            return record
    return None


async def find_tenant(
    log: RoutingLog, recent: RecentRequests, request_id: str, *, counts: Callable[[str | None], bool]
) -> tuple[str | None] | None:
    """The tenant of the request of that id, in a tuple; None for an unknown request, or for one whose tenant does not
    `count`, which takes as long. A request of this process is found before the log has its record. Raises LogError."""
    for pause in _delays(request_id):
        await asyncio.sleep(pause)
        if request_id in recent and counts(recent.tenant(request_id)):
            return (recent.tenant(request_id),)
        record = await log.find(request_id)
        if record is not None and counts(record.tenant):
            return (record.tenant,)
    return None


def _delays(request_id: str) -> tuple[float, ...]:
    return LOOKUP_DELAYS_SECONDS if _REQUEST_ID.fullmatch(request_id) else LOOKUP_DELAYS_SECONDS[:1]
