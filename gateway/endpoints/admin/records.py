"""`/v1/records`: the routing log, and one record with its feedback.

A list has the fields LIST_FIELDS of each record; a single record has all.

Reports that cost time, shared by their readers: `GET /v1/report` and `GET /v1/residency`.

`coe report` computes the first in a process of its own, and the scheduler in `coe up` the second
(`coe.fleet.residency.residency`): experts that are awake, requested or loading, and why requests wait.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Annotated, Any, get_args

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.core import Reason
from coe.errors import (
    DeadlineExceeded,
    Draining,
    ExpertError,
    InvalidRequest,
    LogUnavailable,
    Overloaded,
    RecordNotFound,
    StoreError,
    UnknownCursor,
)
from coe.records.record import Feedback, LogPage, LogQuery, RoutingRecord
from coe.registry import Registry
from gateway.endpoints.handler import json_response, query_of
from gateway.observability.observers import find_record
from gateway.request.body import RequestModel
from gateway.services import Services

MAX_RECORDS = 200
MAX_VALUE_CHARACTERS = 128
MAX_TIME = 32_503_680_000.0  # the year 3000
LOG_SECONDS = 5.0
"""Time limit of a request to the log."""
MAX_CONCURRENT = 8
RETRY_AFTER = 1.0
_log = logging.getLogger("gateway")
_Value = Annotated[str, Field(max_length=MAX_VALUE_CHARACTERS)]
_Time = Annotated[float, Field(ge=0, le=MAX_TIME)]

LIST_FIELDS = (
    "request_id", "time", "category", "confidence", "expert", "reason", "outcome", "attempts", "stream",
    "first_token_ms", "total_ms", "input_tokens", "output_tokens", "cached_tokens", "session", "api", "tenant",
    "key", "cost", "retrieval", "purpose", "fallback_from", "cause", "recipe", "cache", "model", "language",
    "only_local", "unpriced", "rule",
)  # fmt: skip
"""Fields of each record in a list."""
RECORD_FIELDS = tuple(field.name for field in fields(RoutingRecord))
"""Fields of a single record."""


def _codes(kind: type[ExpertError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


FAILURES: tuple[str, ...] = tuple(dict.fromkeys((*_codes(ExpertError), DeadlineExceeded.code, "internal_error")))
"""The outcomes of requests that are an expert's failures."""


class RecordQuery(RequestModel):
    """Filters of the list, which has the newest records first."""

    before: Annotated[str, Field(pattern=r"^([0-9]{1,19}(-[0-9]{1,19})?)?$")] = ""
    since: _Time = 0.0
    until: _Time = MAX_TIME
    category: _Value = ""
    expert: _Value = ""
    outcome: _Value = ""
    reason: _Value = ""
    session: _Value = ""
    tenant: _Value = ""
    id: _Value = ""
    limit: Annotated[int, Field(ge=1, le=MAX_RECORDS)] = 50

    def log_query(self) -> LogQuery:
        """The query that the log understands."""
        fields = self.model_dump(exclude={"id", "until"})
        until = math.inf if self.until == MAX_TIME else self.until
        return LogQuery(request_id=self.id, until=until, **fields)


def list_body(page: LogPage, registry: Registry) -> dict[str, Any]:
    """A page of the log. `cursor` continues it; `retention` states how long and what the log stores."""
    log = registry.log
    return {
        "object": "list",
        "data": [{name: getattr(record, name) for name in LIST_FIELDS} for record in page.records],
        "cursor": page.cursor,
        "damaged": page.damaged,
        "choices": choices(registry),
        "retention": {"records": log.keep_records, "days": log.keep_days, "prompts": log.store_prompts},
    }


def record_body(record: RoutingRecord, feedback: Sequence[Feedback], registry: Registry) -> dict[str, Any]:
    """The record, its feedback, and the values that feedback may have."""
    fields = {name: getattr(record, name) for name in RECORD_FIELDS}
    names = ("kind", "value", "time", "tenant", "key")
    events = [{name: getattr(event, name) for name in names} for event in feedback]
    return {"object": "record", **fields, "feedback": events, "choices": choices(registry)}


def choices(registry: Registry) -> dict[str, list[str]]:
    """The values that filters and labels may have."""
    return {
        "category": list(registry.category_names),
        "expert": list(registry.expert_names),
        "reason": list(get_args(Reason)),
        "outcome": ["ok", "aborted", *sorted({*FAILURES, InvalidRequest.code, Draining.code})],
    }


class Records:
    """Reads the log for administrators, who see the records of all tenants."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._active = 0

    async def list(self, request: Request) -> Response:
        """List the routing log, newest first; `cursor` as `before` gets older records and is empty at the end."""
        query = query_of(request, RecordQuery).log_query()
        async with self._log_access():
            page = await self._services.log.back(query)
        return json_response(list_body(page, self._services.snapshot.registry))

    async def get(self, request: Request) -> Response:
        """Read the record of one request, and its feedback."""
        async with self._log_access():
            record = await self._record(request)
            feedback = await self._services.feedback.for_request(record.request_id, keys=self._keys(record))
        return json_response(record_body(record, feedback, self._services.snapshot.registry))

    async def _record(self, request: Request) -> RoutingRecord:
        request_id = request.path_params["id"]
        record = await find_record(self._services.log, request_id)
        if record is None:
            raise RecordNotFound(
                f"no request {request_id[:64]!r} is in the routing log; new ones take a second, old ones are deleted"
            )
        return record

    def _keys(self, record: RoutingRecord) -> tuple[str | None, ...]:
        """The keys that may have sent feedback on a request: its own, its tenant's and those of administrators."""
        keys = self._services.snapshot.access.keys
        allowed = [key.name for key in keys if (key.tenant or key.name) == record.tenant or "admin" in key.scopes]
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
        except (StoreError, TimeoutError) as error:
            _log.warning("the routing log cannot be read: %s", str(error) or f"no answer within {LOG_SECONDS:g} s")
            raise LogUnavailable("the routing log cannot be read now", retry_after=RETRY_AFTER) from error
        finally:
            self._active -= 1


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
            words, needs = ("report", "--since", f"{days}d", "--json"), ("pyarrow", "scipy")
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
