"""The report of `coe report`, computed by a job outside the gateway process: `GET /v1/report`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.handler import json_response, query_of
from gateway.process.jobs import Reports
from gateway.request.body import RequestModel
from gateway.services import Services


class ReportQuery(RequestModel):
    """The period before now."""

    days: Annotated[int, Field(ge=1, le=3650)] = 7


class Report:
    """The report, cached for a minute."""

    def __init__(self, services: Services) -> None:
        self._reports = Reports(services.jobs)

    async def get(self, request: Request) -> Response:
        """Report on the last days: traffic, spend, drift, alarms, proposed categories, retraining rounds, and what the
        plan is worth."""
        days = query_of(request, ReportQuery).days
        at, report = await self._reports.get("report", "--days", str(days), needs=("scipy", "sklearn"))
        return json_response({"object": "report", "time": at, "report": report})
