"""Reports that cost time, shared by their readers: `GET /v1/report` and `GET /v1/residency`.

`coe report` computes the first in a process of its own, and the scheduler in `coe up` the second
(`coe.fleet.residency.report`): experts that are awake, requested or loading, and why requests wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.handler import json_response, query_of
from gateway.request.body import RequestModel
from gateway.services import Services

REPORT_TIMEOUT_SECONDS = 120.0
REPORT_CACHE_SECONDS = 60.0
"""Time for which a report is cached, since each one reads the log."""
MAX_REPORTS = 12
"""Reports of different periods that are cached at once."""
RESIDENCY_CACHE_SECONDS = 0.5


class SharedResult:
    """A response body that `make` makes on demand, used again for `seconds`. Concurrent readers share one call;
    failures are not kept."""

    def __init__(self, make: Callable[[], Awaitable[bytes]], *, seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._began = 0.0
        self._task: asyncio.Future[bytes] | None = None

    async def get(self) -> bytes:
        """The body. Raises what `make` raises."""
        task, now = self._task, time.monotonic()
        if task is None or (task.done() and (_failed(task) or now - self._began >= self._seconds)):
            task = self._task = asyncio.ensure_future(self._make())
            self._began = now
        return await asyncio.shield(task)  # a client that disconnects does not cancel it for others


def _failed(task: asyncio.Future[Any]) -> bool:
    """True for a task that ended without a result; a cancelled one has no exception."""
    return task.cancelled() or task.exception() is not None


class ReportQuery(RequestModel):
    """The period before now."""

    days: Annotated[int, Field(ge=1, le=3650)] = 7


class Reports:
    """The reports of several periods, and of the devices that experts share."""

    def __init__(self, services: Services) -> None:
        self._jobs, self._residency = services.jobs, services.residency
        self._by_days: dict[int, SharedResult] = {}
        self._devices = SharedResult(self._read_devices, seconds=RESIDENCY_CACHE_SECONDS)

    async def report(self, request: Request) -> Response:
        """Report on the last days: traffic, spend, drift, alarms, retraining rounds, and what the plan is worth."""
        days = query_of(request, ReportQuery).days

        async def compute() -> bytes:
            words, needs = ("report", "--days", str(days), "--json"), ("pyarrow", "scipy")
            report = await self._jobs.run(*words, seconds=REPORT_TIMEOUT_SECONDS, needs=needs)
            return orjson.dumps({"object": "report", "time": time.time(), "report": report})

        if days not in self._by_days:
            while len(self._by_days) >= MAX_REPORTS:
                del self._by_days[next(iter(self._by_days))]
            self._by_days[days] = SharedResult(compute, seconds=REPORT_CACHE_SECONDS)
        return json_response(await self._by_days[days].get())

    async def residency(self, _: Request) -> Response:
        """Devices that experts share: tiers, loads under way, and waiting requests with the reason."""
        return json_response(await self._devices.get())

    async def _read_devices(self) -> bytes:
        devices = [] if self._residency is None else await self._residency.report()
        return orjson.dumps({"object": "residency", "time": time.time(), "devices": devices})
