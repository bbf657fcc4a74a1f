"""Read a request body under a limit."""

from __future__ import annotations

from starlette.types import Receive, Scope

from coe.errors import BodyTooLarge, BodyTooSlow, WrongMediaType
from gateway.cutoff import ClientLeftError

BODY_TIMEOUT = 30.0
"""Seconds for a whole body."""


async def read_json_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """Reads the whole body, at most `limit` bytes. Raises an InvalidRequest, or ClientLeftError.

    The media type must be declared: for a page of any origin a browser sends a body without one, or of text/plain,
    without a preflight request.
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
    return await _read(receive, limit)


async def _read(receive: Receive, limit: int) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_slow() -> BodyTooSlow:
    """The error of a body that is not there after BODY_TIMEOUT."""
    return BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT:g} s")


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit / 2**20:g} MiB (limits.max_body_mb in experts.yaml)")
