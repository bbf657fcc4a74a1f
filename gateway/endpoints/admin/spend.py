"""Reports of the routing log, computed by a job outside the gateway process: `GET /v1/spend` and `GET /v1/history`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoints.operation import (
    BOOLEAN,
    COUNT,
    NUMBER,
    OBJECT,
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


class SpendQuery(RequestModel):
    """The period before now, and the dimensions to sum by."""

    since: Annotated[str, Field(pattern=r"^[1-9]\d{0,4}[smhd]$", description="Period before now: 12h, 7d, ...")] = "7d"
    by: Annotated[
        str,
        Field(
            pattern=r"^(key|tenant|expert|category)(,(key|tenant|expert|category)){0,3}$",
            description="What to sum by: any of key, tenant, expert and category, separated by commas.",
        ),
    ] = "expert"


_AMOUNTS: Schema = {
    "requests": COUNT,
    "unpriced": COUNT | {"description": "Requests whose cost is partly unknown."},
    "dollars": NUMBER,
    "input_tokens": COUNT,
    "output_tokens": COUNT,
}
_ROW = object_schema(_AMOUNTS) | {"description": "Also has a text for each dimension in `by`; empty for none."}
_BASELINE = object_schema({"expert": TEXT, "dollars": NUMBER, "saved": NUMBER})
_REPORT = object_schema(
    {"since": NUMBER, "until": NUMBER, "by": TEXTS, "total": object_schema(_AMOUNTS)}
    | {"rows": {"type": "array", "items": _ROW}}
    | {
        "always": object_schema(
            {"requests": COUNT, "dollars": NUMBER, "experts": {"type": "array", "items": _BASELINE}}
            | {"unknown": TEXTS | {"description": "Experts whose price nothing declares."}}
        ),
        "note": TEXT,
        "damaged": COUNT,
    }
)


class HistoryQuery(RequestModel):
    """The period before now."""

    since: Annotated[Literal["1h", "1d", "7d"], Field(description="The last hour, day or week.")] = "1d"


_NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
_SUMS = object_schema(
    dict.fromkeys(("requests", "failed", "dollars", "unpriced", "ratings"), NUMBER)
    | {"satisfaction": _NUMBER_OR_NULL | {"description": "Mean rating, 0 to 1."}}
    | dict.fromkeys(("first_token_p50_ms", "first_token_p95_ms"), _NUMBER_OR_NULL)
)
_BY_NAME: Schema = {"type": "object", "additionalProperties": _SUMS}
_BUCKET = object_schema(
    {"sampled": BOOLEAN | {"description": "Counts and dollars are estimated from a sample."}, "total": _SUMS}
    | dict.fromkeys(("expert", "category", "key"), _BY_NAME)
)
_HISTORY = object_schema(
    {"start": NUMBER, "seconds": NUMBER | {"description": "Length of a bucket."}, "names": OBJECT}
    | {"buckets": {"type": "array", "items": _BUCKET}, "sampled": COUNT, "damaged": COUNT}
)


class Spending:
    """Both reports, each cached for a minute."""

    def __init__(self, parts: Parts) -> None:
        self._reports = Reports(parts.jobs)

    @operation(
        "GET /v1/spend",
        "readSpend",
        "The report.",
        object_schema({"object": {"const": "spend"}, "report": _REPORT}),
        query=SpendQuery,
        problems=problems(_503="There is no log yet, the job failed or ran too long, or the gateway shuts down."),
    )
    async def get(self, request: Request) -> Response:
        """Dollars by API key, tenant, expert or category, and what always calling one expert would have cost."""
        query = query_of(request, SpendQuery)
        _, report = await self._reports.get("spend", "--by", query.by, "--since", query.since)
        return json_response({"object": "spend", "report": report})

    @operation(
        "GET /v1/history",
        "readHistory",
        "The report.",
        object_schema({"object": {"const": "history"}, "report": _HISTORY}),
        query=HistoryQuery,
        problems=problems(_503="There is no log yet, the job failed or ran too long, or the gateway shuts down."),
    )
    async def history(self, request: Request) -> Response:
        """Traffic, errors, latency, satisfaction and cost over time, by expert, category and API key."""
        query = query_of(request, HistoryQuery)
        _, report = await self._reports.get("history", "--since", query.since)
        return json_response({"object": "history", "report": report})
