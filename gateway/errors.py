"""The one table from errors to HTTP: status, OpenAI's error type, and the error body."""

from __future__ import annotations

import orjson

from coe import errors

_TABLE: tuple[tuple[type[errors.RequestError], int, str], ...] = (  # the first class that fits counts
    (errors.BodyTooLarge, 413, "invalid_request_error"),
    (errors.BodyTooSlow, 408, "invalid_request_error"),
    (errors.WrongMediaType, 415, "invalid_request_error"),
    (errors.ModelNotFound, 404, "invalid_request_error"),
    (errors.InvalidRequest, 400, "invalid_request_error"),
    (errors.Overloaded, 429, "rate_limit_error"),
    (errors.ExpertTimeout, 504, "api_error"),
    (errors.ExpertGarbage, 502, "api_error"),
    (errors.ExpertUnavailable, 503, "api_error"),
    (errors.ExpertRejected, 400, "invalid_request_error"),
    (errors.ExpertError, 502, "api_error"),
)


def status_of(error: errors.RequestError) -> int:
    """The HTTP status of an error; an expert's own 4xx stands."""
    if isinstance(error, errors.ExpertRejected):
        return error.status
    return next((status for kind, status, _ in _TABLE if isinstance(error, kind)), 500)


def body_of(error: errors.RequestError) -> bytes:
    """OpenAI's error body."""
    kind = next((name for table_kind, _, name in _TABLE if isinstance(error, table_kind)), "api_error")
    return error_body(str(error), kind=kind, code=error.code, param=error.param)


def error_body(message: str, *, kind: str, code: str, param: str | None = None) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
