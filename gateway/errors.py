"""Maps each error to its HTTP response: headers and OpenAI's error body. The error has its status (`coe.errors`).

The Messages API writes its own bodies (`gateway/dialects/messages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import orjson

from coe import errors

Headers = Iterable[tuple[bytes, bytes]]

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's types of errors by status; the other ones are of the client (4xx) or of the service."""


def body_of(error: errors.RequestError) -> bytes:
    """OpenAI's error body."""
    status = type(error).status  # that of an expert's own refusal is a detail
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    word = error.upstream_code if isinstance(error, errors.ExpertRejected) else None  # clients act on it
    return error_body(str(error), kind=kind, code=word or error.code, param=error.param)


def headers_of(error: errors.RequestError) -> list[tuple[bytes, bytes]]:
    """The headers of an error: `retry-after` in whole seconds if the error has a time, `www-authenticate` for a missing
    key, and `connection: close` if this process is shutting down."""
    if isinstance(error, errors.Unauthorized):
        return [(b"www-authenticate", b"Bearer")]
    headers = [] if error.retry_after is None else [(b"retry-after", b"%d" % max(1, math.ceil(error.retry_after)))]
    return [*headers, (b"connection", b"close")] if isinstance(error, errors.Draining) else headers


def error_body(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
