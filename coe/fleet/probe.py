"""Asks one server whether it is ready (a real one-token answer) and whether it still answers (its health page)."""

from __future__ import annotations

from typing import Any

import aiohttp
import orjson

from coe.errors import FleetError
from coe.fleet.specs import ServerSpec

_NOT_YET = frozenset({408, 425, 429})
_NO_LIMIT = aiohttp.ClientTimeout(total=None)


def open_session() -> aiohttp.ClientSession:
    """For probes only: no connection is kept, so that a restarted server is never asked over its predecessor's."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


async def answers(spec: ServerSpec, *, session: aiohttp.ClientSession) -> bool:
    """Whether the server gives a one-token answer now, or, without a model, says it is ready. The caller sets a limit.

    A listening port or a health page may be there long before a forward pass works. False where it may come yet
    (nothing listens, 5xx). Raises FleetError where waiting cannot help: a 4xx, or no chat completion.

    The request sets nothing but its length: `transformers serve` with continuous batching samples every later answer
    as the first request asked.
    """
    if spec.model is None:
        return await _page(spec, "/health/ready", session=session, below=300, limit=_NO_LIMIT)
    body = {"model": spec.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    url = f"http://{spec.host}:{spec.port}/v1/chat/completions"
    try:
        async with session.post(url, json=body, timeout=_NO_LIMIT) as response:
            status, text = response.status, await response.content.read(2**16)
    except (aiohttp.ClientError, OSError):
        return False
    if status >= 500 or status in _NOT_YET:
        return False
    if status == 200 and _is_completion(text):
        return True
    start = text[:300].decode(errors="replace")
    raise FleetError(
        f"server {spec.key!r} answered the readiness request for model {spec.model!r} with {status}: {start}\n"
        f"check the expert's model and options, and {spec.log}"
    )


def _is_completion(text: bytes) -> bool:
    try:
        answer: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(answer, dict) and isinstance(answer.get("choices"), list) and bool(answer["choices"])


async def is_alive(spec: ServerSpec, *, session: aiohttp.ClientSession, within: float) -> bool:
    """Whether the server's event loop answers and calls itself healthy, within so many seconds.

    Not a completion: that would wait its turn behind real work, and a busy server would be taken for a frozen one.
    """
    return await _page(spec, "/health", session=session, below=500, limit=aiohttp.ClientTimeout(total=within))


async def _page(
    spec: ServerSpec, path: str, *, session: aiohttp.ClientSession, below: int, limit: aiohttp.ClientTimeout
) -> bool:
    """Whether a page answers with a status below this one."""
    try:
        async with session.get(f"http://{spec.host}:{spec.port}{path}", timeout=limit) as response:
            return response.status < below
    except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
        return False
