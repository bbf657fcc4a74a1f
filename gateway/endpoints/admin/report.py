"""The report of `coe report`, computed by a job outside the gateway process: `GET /v1/report`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.operation import (
    COUNT,
    NUMBER,
    OBJECT,
    OBJECTS,
    TEXT,
    TEXTS,
    Schema,
    json_response,
    object_schema,
    operation,
    problems,
    query_of,
)
from gateway.parts import Parts
from gateway.process.jobs import Reports
from gateway.request.body import RequestModel


class ReportQuery(RequestModel):
    """The period before now."""

    days: Annotated[int, Field(ge=1, le=3650, description="Days of the routing log.")] = 7


_AMOUNTS: Schema = {
    "requests": COUNT,
    "unpriced": COUNT | {"description": "Requests whose cost is partly unknown."},
    "dollars": NUMBER,
    "input_tokens": COUNT,
    "output_tokens": COUNT,
}
_ROW = object_schema({"name": TEXT | {"description": "Empty for none."}} | _AMOUNTS)
_ROWS: Schema = {"type": "array", "items": _ROW}
_BASELINE = object_schema({"expert": TEXT, "dollars": NUMBER, "saved": NUMBER})
_SPEND = object_schema(
    {"total": object_schema(_AMOUNTS), "note": TEXT}
    | {"rows": object_schema(dict.fromkeys(("expert", "category", "key", "tenant"), _ROWS))}
    | {
        "always": object_schema(
            {"requests": COUNT, "dollars": NUMBER, "experts": {"type": "array", "items": _BASELINE}}
            | {"unknown": TEXTS | {"description": "Experts whose price nothing declares."}}
        )
    }
)
_WORTH = {"description": "The plan in use against each expert alone; null without a plan that was made from scores."}
_REPORT = object_schema(
    {"days": COUNT, "traffic": OBJECT, "spend": _SPEND, "plan": {"type": ["object", "null"]} | _WORTH}
    | {"drift": OBJECT, "alarms": OBJECTS, "proposed_categories": OBJECTS, "learning": OBJECT}
)


class Report:
    """The report, cached for a minute."""

    def __init__(self, parts: Parts) -> None:
        self._reports = Reports(parts.jobs)

    @operation(
        "GET /v1/report",
        "readReport",
        "The report.",
        object_schema({"object": {"const": "report"}, "time": NUMBER, "report": _REPORT}),
        query=ReportQuery,
        problems=problems(501, _503="The job failed or ran too long, or the gateway is shutting down."),
    )
    async def get(self, request: Request) -> Response:
        """Report on the last days: traffic, spend, drift, alarms, proposed categories, retraining rounds, and what the
        plan is worth."""
        days = query_of(request, ReportQuery).days
        at, report = await self._reports.get("report", "--days", str(days), needs=("scipy", "sklearn"))
        return json_response({"object": "report", "time": at, "report": report})
