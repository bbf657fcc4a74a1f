"""`/v1/records`: the routing log, one record, and what would be decided of its request now.

What the endpoints of the routing log take and tell.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coe.errors import InvalidRequest, LogError, LogUnavailable, Overloaded, RecordNotFound, UnknownCursor
from coe.records.record import LogPage, LogQuery, RoutingRecord
from coe.routing.replay import decide_again
from gateway.endpoints.admin.operation import Operation, listed
from gateway.endpoints.admin.operation import whole as whole_schema
from gateway.observability.recent import find_record
from gateway.request.validation import checked

if TYPE_CHECKING:
    from gateway.parts import Parts
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field

from coe import errors
from coe.core import Reason
from coe.records.feedback import Feedback
from coe.records.fields import FIELDS, schema_of
from coe.registry import Registry
from coe.routing.replay import ReplayedDecision
from gateway.endpoints.admin.operation import Schema

MOST = 200
LONGEST = 128
FARTHEST = 32_503_680_000.0  # the year 3000
_Value = Annotated[str, Field(max_length=LONGEST)]
_Time = Annotated[float, Field(ge=0, le=FARTHEST)]

SHOWN = tuple(field.name for field in FIELDS if field.info.api == "list")
"""Fields of each record in a list."""
WHOLE = tuple(field.name for field in FIELDS if field.info.api != "none")
"""Fields of a single record."""
ROW_SCHEMA = schema_of([field for field in FIELDS if field.name in SHOWN])
WHOLE_SCHEMA = schema_of([field for field in FIELDS if field.name in WHOLE])
DECIDED = (
    "expert",
    "category",
    "confidence",
    "reason",
    "candidates",
    "utility",
    "price",
    "probabilities",
    "in_distribution",
    "stage",
    "overlay",
    "router",
    "config",
    "plan",
    "assignment",
)
"""What of a record its decision was."""


class Search(BaseModel):
    """Which records to list, the newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Annotated[str, Field(pattern=r"^([0-9]{1,19}(-[0-9]{1,19})?)?$")] = ""
    since: _Time = 0.0
    until: _Time = FARTHEST
    category: _Value = ""
    expert: _Value = ""
    outcome: _Value = ""
    reason: _Value = ""
    session: _Value = ""
    tenant: _Value = ""
    id: _Value = ""
    limit: Annotated[int, Field(ge=1, le=MOST)] = 50

    def query(self) -> LogQuery:
        fields = self.model_dump(exclude={"id"} | ({"until"} if self.until == FARTHEST else set()))
        return LogQuery(request_id=self.id, **fields)


def search_parameters() -> dict[str, Schema]:
    """Their schemas, by name."""
    found: dict[str, Schema] = Search.model_json_schema()["properties"]
    return {name: {k: v for k, v in schema.items() if k != "title"} for name, schema in found.items()}


def row(record: RoutingRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in SHOWN}


def whole(record: RoutingRecord, said: tuple[Feedback, ...], registry: Registry) -> dict[str, Any]:
    """The record without its embedding, its feedback, and the values that a label may have."""
    told = {name: getattr(record, name) for name in WHOLE}
    feedback = [{name: getattr(event, name) for name in ("kind", "value", "time", "tenant", "key")} for event in said]
    return {"object": "record", **told, "feedback": feedback, "choices": choices(registry)}


def compared(
    record: RoutingRecord, again: ReplayedDecision, *, categories: tuple[str, ...], versions: Schema
) -> dict[str, Any]:
    """Both decisions side by side. A worth of null is that of an expert the plan has not for this category."""
    decision, prediction = again.decision, again.prediction
    now = {
        **{
            name: getattr(decision, name) for name in ("expert", "category", "reason", "candidates", "utility", "price")
        },
        "confidence": round(decision.confidence, 5),
        "probabilities": {
            name: round(p, 5) for name, p in zip(categories, prediction.probabilities.tolist(), strict=True)
        },
        "in_distribution": prediction.in_distribution,
        "stage": prediction.stage,
        "overlay": prediction.overlay,
        **versions,
    }
    then = {name: getattr(record, name) for name in DECIDED}
    return {
        "object": "decision",
        "request_id": record.request_id,
        "source": again.source,
        "needs_known": record.needs is not None,
        "then": then,
        "now": {name: now[name] for name in DECIDED},
    }


def choices(registry: Registry) -> dict[str, list[str]]:
    """What the fields of a search are likely to be."""
    return {
        "category": list(registry.category_names),
        "expert": list(registry.expert_names),
        "reason": list(get_args(Reason)),
        "outcome": ["ok", "aborted", *_codes()],
    }


def _codes() -> list[str]:
    """Codes of the errors that may end a request after it was routed; others leave no record."""
    kinds: list[type[errors.RequestError]] = [errors.ExpertError]
    found = {kind.code for kind in (errors.RequestError, errors.InvalidRequest, errors.Draining)}
    found.add(errors.DeadlineExceeded.code)
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        found.add(kind.code)
    return sorted(found)


LOG_SECONDS = 5.0
LOOKING = 0.5
"""Seconds in which a list that is not full goes on looking; the cursor leads on from there."""
AT_ONCE = 8
RETRY_AFTER = 1.0
_log = logging.getLogger("gateway")


class Records:
    """Reads the log on behalf of administrators, of all tenants."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current
        self._records = parts.log
        self._feedback = parts.feedback
        self._under_way = 0

    async def page(self, request: Request) -> Response:
        search = checked(Search, orjson.dumps(dict(request.query_params)))
        async with self._asking():
            page = await self._filled(search.query())
        registry = self._current.serving.registry
        return _answer(
            {
                "object": "list",
                "data": [row(record) for record in page.records],
                "cursor": page.cursor,
                "damaged": page.damaged,
                "choices": choices(registry),
                "keeps": {
                    "records": registry.log.keep_records,
                    "days": registry.log.keep_days,
                    "prompts": registry.log.store_prompts,
                },
            }
        )

    async def one(self, request: Request) -> Response:
        async with self._asking():
            record = await self._found(request)
            said = await self._feedback.for_request(record.request_id, keys=self._keys(record))
        return _answer(whole(record, said, self._current.serving.registry))

    async def decide(self, request: Request) -> Response:
        """With what this process serves with now, and the experts as it sees them."""
        async with self._asking():
            record = await self._found(request)
        serving = self._current.serving
        composition = serving.composition
        again = await decide_again(composition, record)
        versions = {
            "router": composition.router.version,
            "config": composition.registry.digest,
            "plan": serving.plan,
            "assignment": composition.assignment_digest,
        }
        return _answer(compared(record, again, categories=composition.router.categories, versions=versions))

    async def _filled(self, query: LogQuery) -> LogPage:
        """A full page, or what is found in LOOKING seconds; the cursor goes on from there."""
        deadline = time.monotonic() + LOOKING
        found, damaged = list[RoutingRecord](), 0
        while True:
            rest = replace(query, limit=query.limit - len(found))
            page = await self._records.back(rest)
            found += page.records
            damaged += page.damaged
            if not page.cursor or len(found) == query.limit or time.monotonic() > deadline:
                return LogPage(tuple(found), page.cursor, damaged)
            query = replace(query, before=page.cursor)

    async def _found(self, request: Request) -> RoutingRecord:
        request_id = request.path_params["id"]
        record = await find_record(self._records, request_id)
        if record is None:
            raise RecordNotFound(
                f"no request {request_id[:64]!r} is in the routing log: it may be too new, by a second, or too old"
            )
        return record

    def _keys(self, record: RoutingRecord) -> list[str | None]:
        """Those that may have said something of a request: the tenant's, administrators', and whoever sent it."""
        declared = self._current.serving.registry.access.keys
        may = [key.name for key in declared if (key.tenant or key.name) == record.tenant or "admin" in key.scopes]
        return list(dict.fromkeys((None, record.key, *may)))

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Bounded in number and time. Raises Overloaded, LogUnavailable, or InvalidRequest for a wrong cursor."""
        with self._place():
            try:
                async with asyncio.timeout(LOG_SECONDS):
                    yield
            except UnknownCursor:
                raise InvalidRequest("before: no place in this log; start again without it", param="before") from None
            except (LogError, TimeoutError) as error:
                _log.warning("the routing log is not read: %s", str(error) or f"no answer within {LOG_SECONDS:g} s")
                raise LogUnavailable("the routing log cannot be read now", retry_after=RETRY_AFTER) from error

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._under_way >= AT_ONCE:
            raise Overloaded(f"{AT_ONCE} others read the routing log", retry_after=RETRY_AFTER)
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


def _answer(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


_RECORD = {
    **WHOLE_SCHEMA,
    "properties": {
        "object": {"const": "record"},
        **WHOLE_SCHEMA["properties"],
        "feedback": {"type": "array", "items": {"type": "object"}},
        "choices": {"type": "object"},
    },
}
_LIST = listed(ROW_SCHEMA)
_LIST["properties"] |= {"cursor": {"type": "string"}, "damaged": {"type": "integer"}, "choices": {"type": "object"}}
_COMPARED = whole_schema(
    {
        "object": {"const": "decision"},
        "request_id": {"type": "string"},
        "source": {"enum": ["prompt", "posterior"]},
        "needs_known": {"type": "boolean"},
        "then": {"type": "object"},
        "now": {"type": "object"},
    }
)
_ONE = "/v1/records/{id}"

OPERATIONS = (
    Operation(
        "listRecords",
        "GET",
        "/v1/records",
        "The routing log, the newest first; `cursor` as `before` leads to older ones, empty where there are none",
        Records.page,
        _LIST,
        query=search_parameters(),
        problems=(400, 429, 503),
    ),
    Operation(
        "getRecord",
        "GET",
        _ONE,
        "All that the log says of one request, and its feedback",
        Records.one,
        _RECORD,
        problems=(404, 429, 503),
    ),
    Operation(
        "decideAgain",
        "POST",
        f"{_ONE}/decision",
        "What would be decided of that request now",
        Records.decide,
        _COMPARED,
        problems=(400, 404, 409, 429, 503),
    ),
)
