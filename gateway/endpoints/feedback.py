"""`POST /v1/feedback`: what somebody says of an answer, kept for the next round of learning."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from coe.errors import (
    BodyTooLarge,
    BodyTooSlow,
    Draining,
    InvalidRequest,
    LogError,
    LogUnavailable,
    Overloaded,
    RequestError,
    UnknownRequest,
)
from coe.records import FeedbackWriter, Pending
from coe.records.feedback import MAX_NAME_CHARACTERS, Feedback, FeedbackKind
from coe.records.record import RoutingLog
from coe.registry import Registry
from gateway.access import Caller
from gateway.errors import body_of, headers_of, status_of
from gateway.observability.recent import RecentRequests, find_tenant
from gateway.request.admission import FairShares
from gateway.request.body import read_json_body
from gateway.request.cancellation import ClientLeftError
from gateway.request.relay import respond
from gateway.serving_state import ServingState

MAX_BODY = 64 * 1024
BODY_SECONDS = 5.0
LOG_SECONDS = 2.0
"""Seconds to look the request up in the routing log; without an answer the feedback is checked later."""
KEEP_SECONDS = 10.0
"""Seconds to store feedback in the log or, where that fails, in the spool."""
AT_ONCE = 128
"""Requests at a time, from their headers on, each key's share of them: alone 64. They need no permit, since no expert
has to do with them."""
RETRY_AFTER = 1.0
SAYS = ("score", "thumb", "preferred", "category")
THUMBS = {"up": 1, "down": -1}

_FIELDS = frozenset(("request_id", "event_id", *SAYS))
_log = logging.getLogger("gateway")


class FeedbackEndpoint:
    """Keeps feedback once, however often it is sent. When it is answered it is on disk: in the log, or in the spool
    while the log is slow or away. Another tenant's request gets the same 404, with the same latency, as a nonexistent
    one; a key that may administer can rate all."""

    def __init__(
        self, current: ServingState, *, log: RoutingLog, recent: RecentRequests, writer: FeedbackWriter
    ) -> None:
        self._current = current
        self._records = log
        self._recent = recent
        self._writer = writer
        self._under_way = FairShares()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._current.serving
        try:
            caller = serving.access.identify(scope["headers"], "feedback")
            with self._place(caller.key):
                event = read_feedback(await _body(scope, receive), caller=caller, now=time.time())
                is_admin = serving.access.is_admin(scope["headers"])
                pending = await self._checked(event, is_admin=is_admin)
                _check_name(event, serving.registry)
                await self._keep(pending)
            await respond(send, status=200 if pending.checked else 202, body=_kept(pending))
        except RequestError as error:
            await respond(send, status=status_of(error), body=body_of(error), headers=headers_of(error))
        except ClientLeftError:
            pass

    @contextmanager
    def _place(self, key: str | None) -> Iterator[None]:
        if self._current.admission.closed:
            raise Draining("this gateway is about to end; send it again", retry_after=RETRY_AFTER)
        if not self._under_way.take(key, among=AT_ONCE):
            why = f"{self._under_way.taken} events of feedback are under way, {self._under_way.of(key)} of this caller"
            raise Overloaded(f"{why}, and no more may be", retry_after=RETRY_AFTER)
        try:
            yield
        finally:
            self._under_way.give_back(key)

    async def _checked(self, event: Feedback, *, is_admin: bool) -> Pending:
        """The event with its request's tenant; unchecked where the log cannot say within LOG_SECONDS.

        What an administrator says of a tenant's request counts among what that tenant says, with its weight and its
        bounds, under the administrator's key. Raises UnknownRequest.
        """
        try:
            async with asyncio.timeout(LOG_SECONDS):
                found = await find_tenant(
                    self._records,
                    self._recent,
                    event.request_id,
                    counts=lambda tenant: is_admin or tenant == event.tenant,
                )
        except (LogError, TimeoutError) as error:
            why = str(error) or f"no answer within {LOG_SECONDS:g} s"
            _log.warning("feedback is kept unchecked until the routing log can be read: %s", why)
            return Pending(event, checked=False, is_admin=is_admin)
        if found is None:
            raise UnknownRequest(
                f"no request {event.request_id!r} is in the routing log: send what the answer's header "
                "x-request-id said, from a second after its end until the log forgets it",
                param="request_id",
            )
        return Pending(replace(event, tenant=found[0]))

    async def _keep(self, pending: Pending) -> None:
        """Raises LogUnavailable where neither the log nor the spool takes it within KEEP_SECONDS."""
        try:
            async with asyncio.timeout(KEEP_SECONDS):
                await self._writer.keep(pending)
        except (LogError, TimeoutError) as error:
            _log.warning("feedback is not kept: %s", str(error) or f"not stored within {KEEP_SECONDS:g} s")
            raise LogUnavailable("feedback cannot be kept now; send it again", retry_after=RETRY_AFTER) from error


async def _body(scope: Scope, receive: Receive) -> bytes | bytearray:
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await read_json_body(scope, receive, limit=MAX_BODY)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {BODY_SECONDS:g} s") from None
    except BodyTooLarge:
        raise BodyTooLarge(f"the body is larger than the {MAX_BODY // 1024} KiB that feedback may have") from None


def read_feedback(body: bytes | bytearray, *, caller: Caller, now: float) -> Feedback:
    """What a body says, at `now` in Unix seconds. Without an `event_id` the content is its own id. Raises
    InvalidRequest, which names the field."""
    fields = _object(body)
    kind, value = _said(fields)
    request_id = _text(fields.get("request_id"), "request_id")
    if "event_id" in fields:
        event_id = _text(fields["event_id"], "event_id")
    else:
        content = orjson.dumps((request_id, kind, value, caller.key))
        event_id = f"fb_{hashlib.blake2b(content, digest_size=16).hexdigest()}"
    return Feedback(event_id, request_id, now, kind, value, tenant=caller.tenant, key=caller.key)


def _object(body: bytes | bytearray) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    if unknown := sorted(fields.keys() - _FIELDS):
        name = unknown[0][:64]
        raise InvalidRequest(f"{name}: feedback has no such field; it has {', '.join(sorted(_FIELDS))}", param=name)
    return fields


def _said(fields: dict[str, Any]) -> tuple[FeedbackKind, float | str]:
    given = [name for name in SAYS if name in fields]
    if len(given) != 1:
        raise InvalidRequest(
            f"send one of {', '.join(SAYS)}, not {len(given)} of them", param=given[1] if given else None
        )
    value = fields[given[0]]
    match given[0]:
        case "score":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise InvalidRequest("score: must be a number from 0 to 1", param="score")
            return "score", float(value)
        case "thumb":
            if not isinstance(value, str) or value not in THUMBS:
                raise InvalidRequest('thumb: must be "up" or "down"', param="thumb")
            return "thumb", THUMBS[value]
        case "preferred":
            return "preferred", _text(value, "preferred")
        case _:
            return "category", _text(value, "category")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARACTERS:
        raise InvalidRequest(f"{name}: must be a text of 1 to {MAX_NAME_CHARACTERS} characters", param=name)
    return value


def _check_name(event: Feedback, registry: Registry) -> None:
    """Raises InvalidRequest for an expert or category that is not declared."""
    known = {"preferred": registry.expert_names, "category": registry.category_names}.get(event.kind)
    if known is not None and event.value not in known:
        raise InvalidRequest(f"{event.kind}: {event.value!r} is none of {', '.join(known)}", param=event.kind)


def _kept(pending: Pending) -> bytes:
    event = pending.event
    return orjson.dumps(
        {"id": event.event_id, "request_id": event.request_id, "stored": True, "checked": pending.checked}
    )
