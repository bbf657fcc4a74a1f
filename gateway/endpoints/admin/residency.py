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
from gateway.endpoints.handler import json_response
from gateway.services import Services

_MAX_AGE_SECONDS = 0.5


class Devices:
    """The report of the scheduler, empty where no experts share a device."""

    def __init__(self, services: Services) -> None:
        self._residency = services.residency
        self._snapshot = SharedSnapshot(self._take)

    async def get(self, _: Request) -> Response:
        """Devices that experts share: tiers, loads under way, and waiting requests with the reason."""
        return json_response(await self._snapshot.since(asyncio.get_running_loop().time() - _MAX_AGE_SECONDS))

    async def _take(self) -> bytes:
        devices = [] if self._residency is None else await self._residency.report()
        return orjson.dumps({"object": "residency", "time": time.time(), "devices": devices})
