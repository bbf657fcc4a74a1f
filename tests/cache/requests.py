"""A gateway with a cache, and requests to it."""

from __future__ import annotations

from typing import Any

import orjson

from coe.registry import Registry
from tests.fakes import Gateway, Response, registry_of

LONG = "hello general, how are you on this rainy day?"


def cached(**changes: Any) -> Registry:
    return registry_of(**{"cache": {}} | changes)


async def send_chat(
    gateway: Gateway, text: str = LONG, *, headers: dict[str, str] | None = None, **fields: Any
) -> Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    sent = {"content-type": "application/json", **(headers or {})}
    return await gateway.post("/v1/chat/completions", orjson.dumps(body), headers=sent)


async def uses(gateway: Gateway, *requests: dict[str, Any]) -> list[str | None]:
    """Send requests one after another, and return the cache header of each response."""
    return [(await send_chat(gateway, **request)).headers.get("x-coe-cache") for request in requests]
