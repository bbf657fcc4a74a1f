"""`POST /v1/feedback`: a rating, a preferred expert or a corrected category for an earlier response.

An event is stored once, however often it is sent, and read by `coe retrain`. Its request is looked up in the routing
log first, so that a key can rate only its own tenant's requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coe.core import ExpertRule
from coe.errors import (
    Draining,
    InvalidRequest,
    LogUnavailable,
    Overloaded,
    StoreError,
    UnknownRequest,
)
from coe.records import Pending
from coe.records.record import MAX_NAME_CHARACTERS, Feedback, FeedbackKind
from coe.registry import Registry
from coe.registry.permission import permits_model
from gateway.access.access import Caller
from gateway.endpoints.handler import caller_of, json_of, json_response
from gateway.observability.observers import find_record
from gateway.request.body import FairShares, RequestModel
from gateway.services import Services

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 5.0
"""Time limit of a body, since it holds one of the places."""
LOG_SECONDS = 2.0
"""Time limit of the lookup in the routing log; after it the feedback is stored unchecked."""
STORE_SECONDS = 10.0
"""Time limit for storing feedback in the log or, where that fails, in the spool."""
MAX_CONCURRENT = 128
"""Requests that are read and stored at a time; a key alone may have half of them. They need no permit of admission,
since they call no expert."""
RETRY_AFTER = 1.0
KINDS: tuple[FeedbackKind, ...] = ("score", "thumb", "preferred", "category")
THUMBS = {"up": 1, "down": -1}
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
_LEFT_OUT: Any = None
"""The value of a field that is not sent. It may not be sent as null."""
_log = logging.getLogger("gateway")


class FeedbackRequest(RequestModel):
    """Exactly one of score, thumb, preferred and category, for an earlier response."""

    request_id: _Name
    """The response header x-request-id."""
    event_id: _Name = _LEFT_OUT
    """Events with the same id are one event, however often sent; by default a digest of the content."""
    score: Annotated[float, Field(strict=True, ge=0, le=1)] = _LEFT_OUT
    """Quality of the response."""
    thumb: Literal["up", "down"] = _LEFT_OUT
    preferred: _Name = _LEFT_OUT
    """The expert or recipe that should have answered."""
    category: _Name = _LEFT_OUT
    """The correct category of the request."""

    def event(self, caller: Caller, *, now: float) -> Feedback:
        """The event, received at `now` in Unix seconds. Raises InvalidRequest unless there is one kind of feedback."""
        given = [name for name in KINDS if name in self.model_fields_set]
        if len(given) != 1:
            message = f"send one of {', '.join(KINDS)}, not {len(given)} of them"
            raise InvalidRequest(message, param=given[1] if given else None)
        value = THUMBS[self.thumb] if given[0] == "thumb" else getattr(self, given[0])
        event_id = self.event_id
        if "event_id" not in self.model_fields_set:
            content = orjson.dumps((self.request_id, given[0], value, caller.key))
            event_id = f"fb_{hashlib.blake2b(content, digest_size=16).hexdigest()}"
        return Feedback(event_id, self.request_id, now, given[0], value, tenant=caller.tenant, key=caller.key)


class FeedbackEndpoint:
    """Stores feedback durably before it answers: in the log, or in the spool while the log is slow or unavailable.

    Another tenant's request gets the same 404, with the same latency, as a nonexistent one. Administrators can rate
    every request.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._active = FairShares()

    async def post(self, request: Request) -> Response:
        """Rate a response: one of score, thumb, preferred, category."""
        access, registry = self._services.snapshot.access, self._services.snapshot.registry
        caller = caller_of(request)
        with self._slot(caller.key):
            event = (await json_of(request, FeedbackRequest, limit=MAX_BODY_BYTES, seconds=BODY_SECONDS)).event(
                caller, now=time.time()
            )
            pending = await self._checked(event, is_admin=access.is_admin(request.scope["headers"]))
            _check_name(event, registry, caller.rule)
            await self._store(pending)
        stored = {"id": event.event_id, "request_id": event.request_id, "stored": True, "checked": pending.checked}
        return json_response(stored, status=200 if pending.checked else 202)

    @contextmanager
    def _slot(self, key: str | None) -> Iterator[None]:
        if self._services.admission.closed:
            raise Draining("this gateway is shutting down; send the feedback again", retry_after=RETRY_AFTER)
        if not self._active.acquire(key, capacity=MAX_CONCURRENT):
            active, own = self._active.held, self._active.of(key)
            why = f"{active} feedback requests are in progress, {own} of them of this caller; that is the limit"
            raise Overloaded(why, retry_after=RETRY_AFTER)
        try:
            yield
        finally:
            self._active.release(key)

    async def _checked(self, event: Feedback, *, is_admin: bool) -> Pending:
        """The event with its request's tenant; unchecked where the log does not answer within LOG_SECONDS.

        An administrator's feedback on a tenant's request counts as that tenant's, with the same weight and bounds, and
        keeps the administrator's key. Raises UnknownRequest.
        """
        try:
            async with asyncio.timeout(LOG_SECONDS):
                record = await find_record(
                    self._services.log, event.request_id, counts=lambda one: is_admin or one.tenant == event.tenant
                )
        except (StoreError, TimeoutError) as error:
            why = str(error) or f"no answer within {LOG_SECONDS:g} s"
            _log.warning("feedback is stored unchecked until the routing log can be read: %s", why)
            return Pending(event, checked=False, is_admin=is_admin)
        if record is None:
            raise UnknownRequest(
                f"no request {event.request_id!r} is in the routing log: send the response header x-request-id, from a "
                "second after the end of the response until its record expires",
                param="request_id",
            )
        return Pending(replace(event, tenant=record.tenant))

    async def _store(self, pending: Pending) -> None:
        """Raises LogUnavailable where neither the log nor the spool stores it within STORE_SECONDS."""
        try:
            async with asyncio.timeout(STORE_SECONDS):
                await self._services.writer.keep(pending)
        except (StoreError, TimeoutError) as error:
            _log.warning("feedback is not stored: %s", str(error) or f"not stored within {STORE_SECONDS:g} s")
            raise LogUnavailable("feedback cannot be stored now; send it again", retry_after=RETRY_AFTER) from error


def _check_name(event: Feedback, registry: Registry, rule: ExpertRule | None) -> None:
    """Raises InvalidRequest for a category that is not declared, and for an expert or recipe that the caller may not
    use, with the same error as for one that is not declared."""
    if event.kind == "preferred":
        known = tuple(name for name in registry.model_names if permits_model(registry, rule, name))
    elif event.kind == "category":
        known = registry.category_names
    else:
        return
    if event.value not in known:
        raise InvalidRequest(f"{event.kind}: {event.value!r} is not one of {', '.join(known)}", param=event.kind)
