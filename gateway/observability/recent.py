"""The latest requests of this process, for feedback that comes before the routing log has their records."""

from __future__ import annotations

from collections import OrderedDict

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
