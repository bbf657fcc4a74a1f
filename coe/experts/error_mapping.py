"""Maps failures of an expert's server to CoE's errors, with messages that hold no secret.

Servers may repeat what they were sent. `redacted` removes keys, credentials and URL queries from their text and bounds
it to one line; `ErrorMapping` uses it for every message and picks the error class and the cause.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from coe.core import Api
from coe.errors import (
    Cause,
    ExpertBusy,
    ExpertError,
    ExpertInvalidResponse,
    ExpertRejected,
    ExpertTimeout,
    ExpertUnavailable,
    ExpertUnreachable,
)
from coe.urls import secrets_in

MAX_CHARACTERS = 500
"""Longest redacted line."""
_MAX_INPUT = 4096
"""Characters of a text that are processed at all."""
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{1,15}://)(?:[^\s/?#@\"'<>]*@)?([^\s?#\"'<>]*)(?:[?#][^\s\"'<>]*)?")
_LABELLED = re.compile(
    r"(\b(?:bearer|basic|token|secret|password|(?:x-)?api[-_ ]?key)\b(?:\s+provided)?[\"']?\s*[:=]?\s*[\"']?)"
    r"(?=[^\s\"',;]*\d)[^\s\"',;]{8,}",
    re.IGNORECASE,
)
_KEYS = re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|coe|ghp|glpat)[-_][A-Za-z0-9_*.-]{6,}|\bAIza[\w-]{10,}|\beyJ[\w.-]{20,}")
_HIDDEN = "***"


def redacted(text: str, *, secrets: Iterable[str] = ()) -> str:
    """Returns one bounded line without `secrets`, without credentials and queries of URLs, and without likely API
    keys."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    text = text[:_MAX_INPUT]
    text = _URL.sub(r"\1\2", text)
    text = _KEYS.sub(_HIDDEN, _LABELLED.sub(rf"\1{_HIDDEN}", text))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_CHARACTERS]


MAX_RETRY_AFTER = 3600.0
"""Longest Retry-After, in seconds, that is obeyed."""
MAX_CAUSES = 16
"""Errors inspected in one chain of causes."""
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_REJECTED_STATUSES = frozenset({400, 413, 415, 422})
_API_MISSING_STATUSES = frozenset({404, 405, 501})
_UNPROCESSED_STATUSES = frozenset({*range(400, 500), 501, 503, 529}) - {408, 499}
"""Statuses of requests that were not processed. After a timeout or another error, a model may have answered."""
_CAUSES: Mapping[int, Cause] = {
    401: "unauthorized",
    402: "quota_exceeded",
    403: "forbidden",
    408: "timeout",
    429: "rate_limited",
    **dict.fromkeys((404, 405, 410, 501), "not_found"),
    **dict.fromkeys((503, 529), "overloaded"),
    **dict.fromkeys(_REJECTED_STATUSES, "rejected"),
}
_QUOTA_CODES = frozenset({"insufficient_quota", "quota_exceeded", "billing_hard_limit_reached", "billing_not_active"})
_MODEL_CODES = frozenset({"model_not_found", "DeploymentNotFound"})
_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)
_REFUSED = f"[Errno {errno.ECONNREFUSED}]"


class ErrorMapping:
    """Creates the errors of one expert. Messages never contain its `key` or the secrets in its `base_url`."""

    def __init__(self, expert: str, *, key: str, base_url: str = "") -> None:
        self.expert = expert
        self._secrets = tuple(secret for secret in (key, *secrets_in(base_url)) if secret)

    def unreachable(self, error: BaseException) -> ExpertError:
        """No connection could be made, because of `error`."""
        unreachable = ExpertUnreachable(f"expert {self.expert!r} cannot be reached", expert=self.expert)
        unreachable.cause = connection_cause(error) or "unreachable"
        return unreachable

    def connection_lost(self, what: str, *, cause: Cause = "connection_lost") -> ExpertUnavailable:
        """The connection failed or broke off, or the server reported that it cannot continue."""
        error = ExpertUnavailable(f"expert {self.expert!r} {what}", expert=self.expert)
        error.cause = cause
        return error

    def server_error(self, where: str, error: Any) -> ExpertUnavailable:
        """The server sent an error in place of a response or of the rest of one."""
        return self.connection_lost(f"{where}: {self._line(message_of(error))}", cause="server_error")

    def invalid_response(self, what: str) -> ExpertInvalidResponse:
        """The error for a response that does not follow the API."""
        return ExpertInvalidResponse(f"expert {self.expert!r} sent {what}", expert=self.expert)

    def timed_out(self, what: str) -> ExpertTimeout:
        """The error for a server that did not answer in time."""
        return ExpertTimeout(f"expert {self.expert!r} {what}", expert=self.expert)

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes, *, api: Api) -> ExpertError:
        """The error for an HTTP status other than 200. A missing API other than chat does not make the server
        unhealthy."""
        try:
            reported = orjson.loads(body)
        except orjson.JSONDecodeError:
            reported = body.decode("utf-8", "replace")
        reason, code = self._line(message_of(reported)), self._name(reported, "code")
        error: ExpertError
        if status in _REJECTED_STATUSES:
            message, param = f"expert {self.expert!r} rejected the request: {reason}", self._name(reported, "param")
            error = ExpertRejected(message, expert=self.expert, status=status, upstream_code=code, param=param)
        elif status == 429:
            error = ExpertBusy(f"expert {self.expert!r} answered HTTP {status}: {reason}", expert=self.expert)
        elif status in (401, 403):
            error = self.connection_lost(f"refused its api_key (HTTP {status}); check it in experts.yaml")
        else:
            error = self.connection_lost(f"answered HTTP {status}: {reason}")
        error.cause = _CAUSES.get(status, "server_error" if status >= 500 else "unexpected_status")
        if code in _QUOTA_CODES:
            error.cause = "quota_exceeded"
        elif code in _MODEL_CODES or (status == 404 and _MODEL.search(reason)):
            error.cause = "model_not_found"
        error.refused = error.refused or status in _UNPROCESSED_STATUSES
        error.detail = f"HTTP {status}" + (f", code {code}" if code else "")
        if isinstance(error, (ExpertUnavailable, ExpertBusy)):
            error.retry_after = retry_after(headers.get("retry-after", ""), now=time.time())
        if api != "chat" and status in _API_MISSING_STATUSES:
            error.unhealthy = False
        return error

    def _name(self, reported: Any, field: str) -> str | None:
        """The value of a field of an error body in OpenAI's shape if it is an identifier: no prose, and not the key."""
        error = reported.get("error") if isinstance(reported, dict) else None
        name = error.get(field) if isinstance(error, dict) else None
        return name if isinstance(name, str) and _NAME.fullmatch(name) and name not in self._secrets else None

    def _line(self, text: str) -> str:
        return redacted(text, secrets=self._secrets) or "no reason given"


def connection_cause(error: BaseException) -> Cause | None:
    """Return the cause of a failed connection, from an exception or its causes; None for another failure."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            break
        if isinstance(cause, (socket.gaierror, UnicodeError)):
            return "name_resolution"
        if isinstance(cause, ssl.SSLError):
            return "tls_error"
        if isinstance(cause, ConnectionRefusedError) or _REFUSED in str(cause):  # asyncio joins several addresses'
            return "connection_refused"
        if isinstance(cause, TimeoutError):
            return "connect_timeout"
        cause = cause.__cause__ or cause.__context__
    return None


def retry_after(value: str, *, now: float) -> float | None:
    """Seconds of a Retry-After header (seconds, or an HTTP date relative to Unix time `now`), at most MAX_RETRY_AFTER.
    None if it is unreadable (RFC 9110, 10.2.3)."""
    value = value.strip()
    try:
        seconds = float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def message_of(error: Any) -> str:
    """The reason inside an error body, however it is nested; servers send anything."""
    for _ in range(4):
        if not isinstance(error, dict):
            break
        error = next((error[key] for key in ("error", "message", "detail") if error.get(key)), "no reason given")
    try:
        return str(error)
    except RecursionError:
        return "no readable reason"
