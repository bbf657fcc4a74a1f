"""Reads the JSON body of a request under limits of size, number of values and time, and validates it.

Chat requests call `read_json_body`; their dialect parses the bytes. Endpoints with a declared schema call `read_body`
and `validated`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from coe.errors import BodyTooLarge, BodyTooSlow, InvalidRequest, WrongMediaType
from gateway.request.large_bodies import SMALL_BODY, JsonScan

BODY_TIMEOUT = 30.0
"""Seconds in which a whole body must arrive."""
DEFAULT_MAX_VALUES = 500_000
"""JSON values of one body where no other limit applies."""
INITIAL_COPIES = 2
"""Copies of a body for which memory is reserved before its first byte arrives: as read, and as parsed."""

Body = TypeVar("Body", bound=BaseModel)


class ClientLeftError(Exception):
    """The client closed the connection or reads no more, so nobody waits for the answer."""


class BodyReservation(Protocol):
    """Memory reserved for one large body."""

    def reserve_memory(self, size: int) -> None:
        """Grow the reservation to `size` bytes in all. Raises BodyMemoryFull."""

    async def pace(self, arrived: int) -> None:
        """Wait until `arrived` bytes more may be read."""


async def read_json_body(
    scope: Scope,
    receive: Receive,
    *,
    limit: int,
    max_values: int = DEFAULT_MAX_VALUES,
    reservation: BodyReservation | None = None,
) -> bytes | bytearray:
    """Read the whole body, at most `limit` bytes and `max_values` JSON values.

    The client must declare the media type: for a page of any origin, a browser sends text/plain or an undeclared type
    without a preflight request. Raises an InvalidRequest, BodyMemoryFull, or ClientLeftError.
    """
    media_type, declared = b"", 0
    for name, value in scope["headers"]:
        if name == b"content-type":
            media_type = value.partition(b";")[0].strip().lower()
        elif name == b"content-length" and value.isdigit():
            declared = int(value)
    if media_type != b"application/json":
        sent = repr(media_type.decode("latin-1")[:64]) if media_type else "a body without a media type"
        raise WrongMediaType(f"send the header content-type: application/json, not {sent}")
    if declared > limit:
        raise _too_large(limit)
    if reservation and declared > SMALL_BODY:
        reservation.reserve_memory(INITIAL_COPIES * declared)
    first = await _next_message(receive)
    chunk: bytes = first.get("body", b"")
    if declared <= SMALL_BODY and len(chunk) <= SMALL_BODY and not first.get("more_body", False):
        if len(chunk) > limit:
            raise _too_large(limit)
        return chunk
    return await _read(first, receive, limit=limit, scan=JsonScan(max_values=max_values), reservation=reservation)


async def _read(
    message: Message, receive: Receive, *, limit: int, scan: JsonScan, reservation: BodyReservation | None
) -> bytes | bytearray:
    """Read the body that begins with `message` into one buffer; joining a list of chunks would hold it twice."""
    body = bytearray()
    while True:
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        body += chunk
        scan.feed(chunk)
        if reservation and scan.size > SMALL_BODY:
            reservation.reserve_memory(scan.memory)
            await reservation.pace(len(chunk))
        if not message.get("more_body", False):
            return body
        message = await _next_message(receive)


async def _next_message(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message


def body_too_slow() -> BodyTooSlow:
    """The error of a body that did not arrive within BODY_TIMEOUT."""
    return BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT:g} s")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit / 2**20:g} MiB (limits.max_body_mb in experts.yaml)")


async def read_body(request: Request, *, limit: int) -> bytes | bytearray:
    """Read the body, at most `limit` bytes of JSON. Raises an InvalidRequest, or ClientLeftError."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await read_json_body(request.scope, request.receive, limit=limit)
    except TimeoutError:
        raise body_too_slow() from None


def validated(model: type[Body], data: bytes | bytearray) -> Body:
    """The body as a `model`. Raises InvalidRequest, which names the field."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"])[:64]
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise InvalidRequest(f"{field}: {reason}" if field else reason, param=field or None) from None
