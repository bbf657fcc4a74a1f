"""Probes expert servers: readiness by a real small request, liveness by the health page.

Such a probe is not one of the evaluation prompts that `coe score` measures with (`coe.measuring.probes`).

The modules that run servers use it, on one machine (`coe.fleet.server`), on shared devices and on Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from coe.core import Api
from coe.errors import FleetError
from coe.fleet.specs import ServerSpec

_RETRY_STATUSES = frozenset({408, 425, 429})
_MAX_ANSWER_BYTES = 2**20
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)


@dataclass(frozen=True, slots=True)
class _Request:
    """A small request in one API, and the list that an answer has."""

    path: str
    fields: Mapping[str, Any]
    answer_field: str


_CHAT = _Request(
    "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}, answer_field="choices"
)
_REQUESTS: Mapping[Api, _Request] = {
    "chat": _CHAT,
    "responses": _CHAT,  # their servers serve chat too
    "messages": _CHAT,
    "completions": _Request("/v1/completions", {"prompt": "Hi", "max_tokens": 1}, "choices"),
    "embeddings": _Request("/v1/embeddings", {"input": "Hi"}, "data"),
    "rerank": _Request("/v1/rerank", {"query": "Hi", "documents": ["Hi"]}, "results"),
    "score": _Request("/v1/score", {"text_1": "Hi", "text_2": "Hi"}, "data"),
}
"""The first one whose API the server's experts use is sent. Servers of other APIs have the health page alone."""


def open_probe_session() -> aiohttp.ClientSession:
    """A session that keeps no connection, so that a restarted server is not probed over its predecessor's."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))


async def is_ready(spec: ServerSpec, *, session: aiohttp.ClientSession) -> bool:
    """Returns True if the server answers a small request now or, without a model or an API for one, reports that it is
    ready. The caller sets a timeout.

    A port or a health page may be available long before a forward pass works. Returns False if the server may become
    ready (nothing listens, 5xx). Raises FleetError if waiting cannot help: a 4xx, or an answer of another form.

    The request sets nothing but its length: `transformers serve` with continuous batching samples every later answer as
    the first request set.
    """
    if spec.model is None:
        return await _get_below(spec, "/health/ready", session=session, max_status=300, client_timeout=_NO_TIMEOUT)
    request = _request(spec)
    if request is None:
        return await _get_below(spec, spec.health_path, session=session, max_status=300, client_timeout=_NO_TIMEOUT)
    body = {"model": spec.model, **request.fields}
    try:
        async with session.post(f"{spec.root}{request.path}", json=body, timeout=_NO_TIMEOUT) as response:
            status, text = response.status, await _body(response)
    except (aiohttp.ClientError, OSError):
        return False
    if status >= 500 or status in _RETRY_STATUSES:
        return False
    if status == 200 and _is_answer(text, request.answer_field):
        return True
    start = text[:300].decode(errors="replace")
    raise FleetError(
        f"server {spec.key!r} answered the readiness request for model {spec.model!r} with {status}: {start}\n"
        f"check the expert's model and options, and {spec.log}"
    )


def _request(spec: ServerSpec) -> _Request | None:
    return next((request for api, request in _REQUESTS.items() if api in spec.apis), None)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    """The body, or the start of a long one."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            break
    return bytes(body)


def _is_answer(text: bytes, field: str) -> bool:
    try:
        answer: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(answer, dict) and isinstance(answer.get(field), list) and bool(answer[field])


async def is_alive(spec: ServerSpec, *, session: aiohttp.ClientSession, time_limit: float) -> bool:
    """Returns True if the server's event loop answers its health page within `time_limit` seconds. A completion would
    queue behind real work, so a busy server would seem frozen."""
    return await _get_below(
        spec, spec.health_path, session=session, max_status=500, client_timeout=aiohttp.ClientTimeout(total=time_limit)
    )


async def _get_below(
    spec: ServerSpec,
    path: str,
    *,
    session: aiohttp.ClientSession,
    max_status: int,
    client_timeout: aiohttp.ClientTimeout,
) -> bool:
    """Returns True if a page answers with a status below `max_status`."""
    try:
        async with session.get(f"{spec.root}{path}", timeout=client_timeout) as response:
            return response.status < max_status
    except (aiohttp.ClientError, OSError):  # TimeoutError is an OSError
        return False
