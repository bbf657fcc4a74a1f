"""Maps each error to its HTTP response: status, headers and OpenAI's error body.

Every endpoint uses this table. The Messages API writes its own bodies (`gateway/dialects/messages.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import orjson

from coe import errors

Headers = Iterable[tuple[bytes, bytes]]

_TABLE: tuple[tuple[type[errors.RequestError], int, str], ...] = (  # the first class that matches applies
    (errors.BodyTooLarge, 413, "invalid_request_error"),
    (errors.BodyTooSlow, 408, "invalid_request_error"),
    (errors.WrongMediaType, 415, "invalid_request_error"),
    (errors.HeadersTooLarge, 431, "invalid_request_error"),
    (errors.ModelNotFound, 404, "invalid_request_error"),
    (errors.UnknownRequest, 404, "invalid_request_error"),
    (errors.RecordNotFound, 404, "invalid_request_error"),
    (errors.ResponseNotFound, 404, "invalid_request_error"),
    (errors.NotClassified, 409, "invalid_request_error"),
    (errors.DocumentNotFound, 404, "invalid_request_error"),
    (errors.DocumentsConflict, 409, "invalid_request_error"),
    (errors.ArtifactNotFound, 404, "invalid_request_error"),
    (errors.ArtifactRefused, 409, "invalid_request_error"),
    (errors.ConfigRefused, 409, "invalid_request_error"),
    (errors.KeyNotFound, 404, "invalid_request_error"),
    (errors.KeyRefused, 409, "invalid_request_error"),
    (errors.NothingMeasured, 409, "invalid_request_error"),
    (errors.Unauthorized, 401, "authentication_error"),
    (errors.Forbidden, 403, "permission_error"),
    (errors.CrossOriginRequest, 403, "permission_error"),
    (errors.UntrustedHost, 421, "invalid_request_error"),
    (errors.InvalidRequest, 400, "invalid_request_error"),
    (errors.Overloaded, 429, "rate_limit_error"),
    (errors.LimitReached, 429, "rate_limit_error"),
    (errors.BodyMemoryFull, 503, "api_error"),
    (errors.Draining, 503, "api_error"),
    (errors.LogUnavailable, 503, "api_error"),
    (errors.ResponsesUnavailable, 503, "api_error"),
    (errors.DocumentsUnavailable, 503, "api_error"),
    (errors.KeysUnavailable, 503, "api_error"),
    (errors.JobUnavailable, 503, "api_error"),
    (errors.NotInstalled, 501, "api_error"),
    (errors.DeadlineExceeded, 504, "api_error"),
    (errors.AnswerMemoryFull, 503, "api_error"),
    (errors.ExpertBusy, 429, "rate_limit_error"),
    (errors.ExpertTimeout, 504, "api_error"),
    (errors.ExpertInvalidResponse, 502, "api_error"),
    (errors.ExpertUnavailable, 503, "api_error"),
    (errors.ExpertRejected, 400, "invalid_request_error"),
    (errors.ExpertError, 502, "api_error"),
)


def status_of(error: errors.RequestError) -> int:
    """The HTTP status of an error. A 4xx status from an expert passes through."""
    if isinstance(error, errors.ExpertRejected):
        return error.status
    return next((status for kind, status, _ in _TABLE if isinstance(error, kind)), 500)


def body_of(error: errors.RequestError) -> bytes:
    """OpenAI's error body."""
    kind = next((name for table_kind, _, name in _TABLE if isinstance(error, table_kind)), "api_error")
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
