"""`GET /v1/status`: what `coe status` finds in the traffic, looked up by a job beside the gateway."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.admin.operation import Operation, whole

if TYPE_CHECKING:
    from gateway.app import Parts

FRESH = 60.0
"""Seconds for which a look is shown again: it reads a week of the log."""
SECONDS = 120.0


class Status:
    """Whoever asks while a look is under way gets that one."""

    def __init__(self, parts: Parts) -> None:
        self._jobs = parts.jobs
        self._look: asyncio.Task[dict[str, Any]] | None = None
        self._until = 0.0

    async def now(self, _: Request) -> Response:
        if self._look is None or (self._look.done() and time.monotonic() >= self._until):
            self._look = asyncio.create_task(self._looked(), name="coe-status")
        found = await asyncio.shield(self._look)
        return Response(orjson.dumps(found), media_type="application/json")

    async def _looked(self) -> dict[str, Any]:
        self._until = 0.0  # a failure is not shown again
        report = await self._jobs.report("status", seconds=SECONDS, needs=("scipy", "sklearn"))
        self._until = time.monotonic() + FRESH
        return {"object": "status", "time": time.time(), "report": report}


OPERATIONS = (
    Operation(
        "readStatus",
        "GET",
        "/v1/status",
        "What the last week's traffic shows: drift, alarms, proposed categories, rounds of learning",
        Status.now,
        whole({"object": {"const": "status"}, "time": {"type": "number"}, "report": {"type": "object"}}),
        problems=(501, 503),
    ),
)
