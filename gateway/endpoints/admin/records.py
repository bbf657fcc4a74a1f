"""`/v1/records`: the routing log, one record, and what would be decided of its request now."""

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
from gateway.admin.record_bodies import ROW_SCHEMA, WHOLE_SCHEMA, Search, choices, compared, row, search_parameters
from gateway.admin.record_bodies import whole as told
from gateway.endpoints.admin.operation import Operation, listed, whole
from gateway.lookup import found_soon
from gateway.request.validation import checked

if TYPE_CHECKING:
    from gateway.app import Parts

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
            said = await self._feedback.about(record.request_id, keys=self._keys(record))
        return _answer(told(record, said, self._current.serving.registry))

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
        until = time.monotonic() + LOOKING
        found, damaged = list[RoutingRecord](), 0
        while True:
            rest = replace(query, limit=query.limit - len(found))
            page = await self._records.back(rest)
            found += page.records
            damaged += page.damaged
            if not page.cursor or len(found) == query.limit or time.monotonic() > until:
                return LogPage(tuple(found), page.cursor, damaged)
            query = replace(query, before=page.cursor)

    async def _found(self, request: Request) -> RoutingRecord:
        request_id = request.path_params["id"]
        record = await found_soon(self._records, request_id)
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
_COMPARED = whole(
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
