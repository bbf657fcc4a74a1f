"""`GET /v1/status`: the report of `coe status` on the last week's traffic, computed by a job beside the gateway."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.http import json_response
from gateway.endpoints.operation import Operation, json_success, object_schema, problems
from gateway.parts import Parts

CACHE_SECONDS = 60.0
"""A report is returned again for this long, since it reads a week of the log."""
JOB_SECONDS = 120.0


class Status:
    """Requests that come while a report is computed share it."""

    def __init__(self, parts: Parts) -> None:
        self._jobs = parts.jobs
        self._report: asyncio.Task[dict[str, Any]] | None = None
        self._expires = 0.0

    async def get(self, _: Request) -> Response:
        """`GET /v1/status`."""
        if self._report is None or (self._report.done() and time.monotonic() >= self._expires):
            self._report = asyncio.create_task(self._compute(), name="coe-status")
        return json_response(await asyncio.shield(self._report))

    async def _compute(self) -> dict[str, Any]:
        self._expires = 0.0  # a failure is not cached
        report = await self._jobs.run("status", seconds=JOB_SECONDS, needs=("scipy", "sklearn"))
        self._expires = time.monotonic() + CACHE_SECONDS
        return {"object": "status", "time": time.time(), "report": report}


OPERATIONS = (
    Operation(
        name="readStatus",
        method="GET",
        path="/v1/status",
        summary="Report on the last week's traffic: drift, alarms, proposed categories, retraining rounds",
        resource=Status,
        handler=Status.get,
        scope="admin",
        responses=json_success(
            "The report.",
            object_schema({"object": {"const": "status"}, "time": {"type": "number"}, "report": {"type": "object"}}),
        ),
        problems=problems(501, _503="The job failed or ran too long, or the gateway is shutting down."),
    ),
)
