"""Read a request body under a limit."""

from __future__ import annotations

from typing import Protocol

from starlette.types import Message, Receive, Scope

from coe.errors import BodyTooLarge, BodyTooSlow, WrongMediaType
from gateway.json_scan import MAX_VALUES, JsonScan
from gateway.request.cancellation import ClientLeftError

BODY_TIMEOUT = 30.0
"""Seconds for a whole body."""
SMALL_BODY = 2**16
"""Bytes of a body whose values are not counted and whose memory is not: permits and places bound these."""
INITIAL_COPIES = 2
"""Copies of a body's bytes that memory is reserved for before any of them has arrived: as read, and as parsed."""


class Room(Protocol):
    """What bounds the large bodies of all requests together."""

    def hold(self, size: int) -> None:
        """Hold memory for this body until it has `size` bytes in all. Raises BodyMemoryFull."""

    async def pace(self, arrived: int) -> None:
        """Wait until `arrived` bytes more may be read."""


async def read_json_body(
    scope: Scope, receive: Receive, *, limit: int, max_values: int = MAX_VALUES, room: Room | None = None
) -> bytes | bytearray:
    """Reads the whole body, at most `limit` bytes and `max_values` JSON values.

    The media type must be declared: for a page of any origin a browser sends a body without one, or of text/plain,
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
    if room and declared > SMALL_BODY:
        room.hold(INITIAL_COPIES * declared)
    first = await _received(receive)
    chunk: bytes = first.get("body", b"")
    if declared <= SMALL_BODY and len(chunk) <= SMALL_BODY and not first.get("more_body", False):
        if len(chunk) > limit:
            raise _too_large(limit)
        return chunk
    return await _read(first, receive, limit=limit, scan=JsonScan(max_values=max_values), room=room)


async def _read(
    message: Message, receive: Receive, *, limit: int, scan: JsonScan, room: Room | None
) -> bytes | bytearray:
    """The body that begins with `message`, in one buffer: a list of chunks to be joined would hold it twice."""
    body = bytearray()
    while True:
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        body += chunk
        scan.feed(chunk)
        if room and scan.size > SMALL_BODY:
            room.hold(scan.memory)
            await room.pace(len(chunk))
        if not message.get("more_body", False):
            return body
        message = await _received(receive)


async def _received(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    return message


def too_slow() -> BodyTooSlow:
    """The error of a body that is not there after BODY_TIMEOUT."""
    return BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT:g} s")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit / 2**20:g} MiB (limits.max_body_mb in experts.yaml)")
