"""The APIs that clients use. A `Dialect` parses the requests of one API and writes its errors.

`body_of` and `headers_of` map an error to OpenAI's response, its status is `error.status` (`coe.errors`). The Messages
API writes its own bodies (`gateway/dialects/messages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import orjson

from coe import errors
from coe.core import Api, Chat
from coe.errors import RequestError
from coe.experts.http import sse

Headers = Iterable[tuple[bytes, bytes]]

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's types of errors by status; the other ones are of the client (4xx) or of the service."""


def body_of(error: RequestError) -> bytes:
    """OpenAI's error body."""
    status = type(error).status  # that of an expert's own refusal is a detail
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    word = error.upstream_code if isinstance(error, errors.ExpertRejected) else None  # clients act on it
    return error_body(str(error), kind=kind, code=word or error.code, param=error.param)


def headers_of(error: RequestError) -> list[tuple[bytes, bytes]]:
    """The headers of an error: `retry-after` in whole seconds if the error has a time, `www-authenticate` for a missing
    key, and `connection: close` if this process is shutting down."""
    if isinstance(error, errors.Unauthorized):
        return [(b"www-authenticate", b"Bearer")]
    headers = [] if error.retry_after is None else [(b"retry-after", b"%d" % max(1, math.ceil(error.retry_after)))]
    return [*headers, (b"connection", b"close")] if isinstance(error, errors.Draining) else headers


def error_body(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API's form of requests and errors."""

    api: Api
    parse: Callable[[bytes | bytearray], Chat]
    """Returns the routing view of a body. Raises an InvalidRequest that names the field."""
    error_body: Callable[[RequestError], bytes]
    error_event: Callable[[RequestError], bytes]
    """An error as the last event of a stream."""
    keep_alive: bytes = sse.COMMENT
    """Bytes that keep a silent stream alive; clients of the API ignore them."""
    forms: bool = False
    """True if a body may be a multipart form."""
