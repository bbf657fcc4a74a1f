"""A request's body as an exact model, under limits of size and time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from coe.errors import BodyTooSlow, InvalidRequest
from gateway.request.body import read_json_body

SECONDS = 30.0
"""For a body to arrive."""

Body = TypeVar("Body", bound=BaseModel)


async def arrived(request: Request, *, limit: int) -> bytes | bytearray:
    """The body, at most `limit` bytes of JSON. Raises an InvalidRequest, or ClientLeftError."""
    try:
        async with asyncio.timeout(SECONDS):
            return await read_json_body(request.scope, request.receive, limit=limit)
    except TimeoutError:
        raise BodyTooSlow(f"the body did not arrive within {SECONDS:g} s") from None


def checked(kind: type[Body], data: bytes | bytearray) -> Body:
    """What the body says. Raises InvalidRequest, which names the field."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(step) for step in first["loc"])[:64]
        told = first["msg"][0].lower() + first["msg"][1:]
        raise InvalidRequest(f"{field}: {told}" if field else told, param=field or None) from None
