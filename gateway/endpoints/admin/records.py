"""`/v1/records`: the routing log, one record with its feedback, and the replay of its decision."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from coe.errors import InvalidRequest, LogError, LogUnavailable, Overloaded, RecordNotFound, UnknownCursor
from coe.records.record import LogPage, LogQuery, RoutingRecord
from coe.routing.replay import replay
from gateway.endpoints.admin.record_bodies import (
    LIST_SCHEMA,
    RECORD_SCHEMA,
    REPLAY_SCHEMA,
    RecordQuery,
    list_body,
    record_body,
    replay_body,
)
from gateway.endpoints.http import json_response, query_of
from gateway.endpoints.operation import Operation, json_success, problems
from gateway.observability.recent import find_record
from gateway.parts import Parts

LOG_SECONDS = 5.0
"""Time limit of a request to the log."""
PAGE_SECONDS = 0.5
"""Time for which a list that is not full searches on; its cursor continues from there."""
MAX_CONCURRENT = 8
RETRY_AFTER = 1.0
_log = logging.getLogger("gateway")


class Records:
    """Reads the log for administrators, who see the records of all tenants."""

    def __init__(self, parts: Parts) -> None:
        self._current = parts.current
        self._records = parts.log
        self._feedback = parts.feedback
        self._active = 0

    async def list(self, request: Request) -> Response:
        """`GET /v1/records`."""
        query = query_of(request, RecordQuery).log_query()
        async with self._log_access():
            page = await self._page(query)
        return json_response(list_body(page, self._current.serving.registry))

    async def get(self, request: Request) -> Response:
        """`GET /v1/records/{id}`."""
        async with self._log_access():
            record = await self._record(request)
            feedback = await self._feedback.for_request(record.request_id, keys=self._keys(record))
        return json_response(record_body(record, feedback, self._current.serving.registry))

    async def replay(self, request: Request) -> Response:
        """`POST /v1/records/{id}/decision`: decides with what this process serves and its view of the experts."""
        async with self._log_access():
            record = await self._record(request)
        serving = self._current.serving
        composition = serving.composition
        decided = await replay(composition, record)
        versions = {
            "router": composition.router.version,
            "config": composition.registry.digest,
            "plan": serving.plan,
            "assignment": composition.assignment_digest,
        }
        return json_response(replay_body(record, decided, categories=composition.router.categories, versions=versions))

    async def _page(self, query: LogQuery) -> LogPage:
        """A full page, or what is found within PAGE_SECONDS; the cursor continues from there."""
        deadline = time.monotonic() + PAGE_SECONDS
        found: tuple[RoutingRecord, ...] = ()
        damaged = 0
        while True:
            page = await self._records.back(replace(query, limit=query.limit - len(found)))
            found += page.records
            damaged += page.damaged
            if not page.cursor or len(found) == query.limit or time.monotonic() > deadline:
                return LogPage(found, page.cursor, damaged)
            query = replace(query, before=page.cursor)

    async def _record(self, request: Request) -> RoutingRecord:
        request_id = request.path_params["id"]
        record = await find_record(self._records, request_id)
        if record is None:
            raise RecordNotFound(
                f"no request {request_id[:64]!r} is in the routing log: it may be too new, by a second, or too old"
            )
        return record

    def _keys(self, record: RoutingRecord) -> tuple[str | None, ...]:
        """The keys that may have sent feedback on a request: its own, its tenant's and those of administrators."""
        declared = self._current.serving.registry.access.keys
        allowed = [key.name for key in declared if (key.tenant or key.name) == record.tenant or "admin" in key.scopes]
        return tuple(dict.fromkeys((None, record.key, *allowed)))

    @asynccontextmanager
    async def _log_access(self) -> AsyncIterator[None]:
        """Limits requests to the log in number and time. Raises Overloaded, LogUnavailable, or InvalidRequest for an
        unknown cursor."""
        if self._active >= MAX_CONCURRENT:
            raise Overloaded(f"{MAX_CONCURRENT} other requests read the routing log", retry_after=RETRY_AFTER)
        self._active += 1
        try:
            async with asyncio.timeout(LOG_SECONDS):
                yield
        except UnknownCursor:
            raise InvalidRequest("before: unknown cursor; start again without it", param="before") from None
        except (LogError, TimeoutError) as error:
            _log.warning("the routing log cannot be read: %s", str(error) or f"no answer within {LOG_SECONDS:g} s")
            raise LogUnavailable("the routing log cannot be read now", retry_after=RETRY_AFTER) from error
        finally:
            self._active -= 1


_BUSY = "Too many requests read the routing log."
_UNREADABLE = "The routing log cannot be read."
_NO_RECORD = "No such record."
OPERATIONS = (
    Operation(
        name="listRecords",
        method="GET",
        path="/v1/records",
        summary="List the routing log, newest first; `cursor` as `before` gets older records and is empty at the end",
        resource=Records,
        handler=Records.list,
        scope="admin",
        responses=json_success("A page of records.", LIST_SCHEMA),
        query=RecordQuery,
        problems=problems(400, _429=_BUSY, _503=_UNREADABLE),
    ),
    Operation(
        name="getRecord",
        method="GET",
        path="/v1/records/{id}",
        summary="Read the record of one request, and its feedback",
        resource=Records,
        handler=Records.get,
        scope="admin",
        responses=json_success("The record.", RECORD_SCHEMA),
        problems=problems(_404=_NO_RECORD, _429=_BUSY, _503=_UNREADABLE),
    ),
    Operation(
        name="decideAgain",
        method="POST",
        path="/v1/records/{id}/decision",
        summary="Replay the decision on a recorded request",
        resource=Records,
        handler=Records.replay,
        scope="admin",
        responses=json_success("The recorded and the replayed decision.", REPLAY_SCHEMA),
        problems=problems(400, _404=_NO_RECORD, _409="The request was not classified.", _429=_BUSY, _503=_UNREADABLE),
    ),
)
