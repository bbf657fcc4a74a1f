"""Read a request body under a limit, and notice when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope

from coe.errors import BodyTooLarge, BodyTooSlow, WrongMediaType

BODY_TIMEOUT = 30.0
"""Seconds for a whole body; a permit is held meanwhile."""


class ClientLeftError(Exception):
    """The client closed the connection; nobody waits for the answer."""


async def read_json_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """The whole body, at most `limit` bytes. Raises an InvalidRequest, or ClientLeftError."""
    headers = dict(scope["headers"])
    media_type = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    if media_type != b"application/json":
        message = f"send the header content-type: application/json, not {media_type.decode('latin-1')}"
        raise WrongMediaType(message)
    declared = headers.get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            return await _read(receive, limit)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {BODY_TIMEOUT:g} s") from None


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


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit / 2**20:g} MiB (limits.max_body_mb in experts.yaml)")


@asynccontextmanager
async def presence(receive: Receive) -> AsyncIterator[None]:
    """Cancels the enclosed block and raises ClientLeftError when the client closes the connection meanwhile."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientLeftError from None
    finally:
        watcher.cancel()
