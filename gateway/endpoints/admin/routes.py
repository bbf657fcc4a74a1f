"""The administrators' endpoints, each for keys with the scope `admin`.

`GET /v1/status`: what `coe status` finds in the traffic, looked up by a job beside the gateway.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from gateway.access.authorization import guarded
from gateway.endpoints.admin import artifacts, experts, mapping, onboarding, records, stats
from gateway.endpoints.admin.operation import Operation
from gateway.serving_state import ServingState

if TYPE_CHECKING:
    from gateway.parts import Parts
import asyncio
import time

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.admin.operation import whole

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
        report = await self._jobs.run("status", seconds=SECONDS, needs=("scipy", "sklearn"))
        self._until = time.monotonic() + FRESH
        return {"object": "status", "time": time.time(), "report": report}


STATUS_OPERATIONS = (
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


OPERATIONS: tuple[Operation, ...] = (
    *stats.OPERATIONS,
    *records.OPERATIONS,
    *mapping.OPERATIONS,
    *artifacts.OPERATIONS,
    *STATUS_OPERATIONS,
    *onboarding.OPERATIONS,
    *experts.OPERATIONS,
)


def admin_routes(parts: Parts) -> list[Route]:
    """What answers them, over what is served with now."""
    current = parts.current
    return [
        *_routes(stats.Stats(parts), stats.OPERATIONS, current),
        *_routes(mapping.Map(parts), mapping.OPERATIONS, current),
        *_routes(artifacts.Artifacts(parts), artifacts.OPERATIONS, current),
        *_routes(Status(parts), STATUS_OPERATIONS, current),
        *_routes(onboarding.Onboarding(parts), onboarding.OPERATIONS, current),
        *_routes(experts.Experts(parts), experts.OPERATIONS, current),
        *_routes(records.Records(parts), records.OPERATIONS, current),
    ]


def _routes(view: Any, operations: Iterable[Operation], current: ServingState) -> list[Route]:
    return [
        Route(one.path, guarded(partial(one.does, view), current, scope="admin"), methods=[one.method])
        for one in operations
    ]
