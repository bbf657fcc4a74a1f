"""Reports on the devices that experts share (`GET /v1/residency`): experts that are awake, requested or loading, and
why requests wait.

The scheduler in `coe up` produces the report (`coe.fleet.residency.report`); requests of the same second share a
report.
"""

from __future__ import annotations

import asyncio
import time

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.admin.stats import SharedSnapshot
from gateway.endpoints.operation import (
    COUNT,
    NUMBER,
    TEXT,
    TEXTS,
    Schema,
    json_response,
    object_schema,
    operation,
    problems,
)
from gateway.parts import Parts

_MAX_AGE_SECONDS = 0.5
_NULLABLE: Schema = {"type": ["number", "null"]}
_SERVER = object_schema(
    {"experts": TEXTS, "switches": COUNT, "tier": TEXT, "memory_gb": NUMBER}
    | {"pinned": {"type": "boolean"}}
    | {"in_flight": COUNT, "waiting": COUNT, "oldest_wait_s": _NULLABLE, "load_s": _NULLABLE, "reason": TEXT}
)
_DEVICE = object_schema(
    {"device": TEXT, "memory_gb": NUMBER, "occupied_gb": NUMBER, "host_memory_gb": NUMBER, "host_occupied_gb": NUMBER}
    | {"servers": {"type": "array", "items": _SERVER}}
)
_REPORT = object_schema(
    {"object": {"const": "residency"}, "time": NUMBER, "devices": {"type": "array", "items": _DEVICE}}
)


class Devices:
    """The report of the scheduler, empty where no experts share a device."""

    def __init__(self, parts: Parts) -> None:
        self._residency = parts.residency
        self._snapshot = SharedSnapshot(self._take)

    @operation(
        "GET /v1/residency",
        "readResidency",
        "The devices.",
        _REPORT,
        problems=problems(_503="The process that loads the experts does not answer."),
    )
    async def get(self, _: Request) -> Response:
        """Devices that experts share: tiers, loads under way, and waiting requests with the reason."""
        return json_response(await self._snapshot.since(asyncio.get_running_loop().time() - _MAX_AGE_SECONDS))

    async def _take(self) -> bytes:
        devices = [] if self._residency is None else await self._residency.report()
        return orjson.dumps({"object": "residency", "time": time.time(), "devices": devices})
