"""What went wrong at one expert's server, as an error in the expert's name: one line, bounded, without its key.

Removes secrets from what a server wrote, and bounds it: one line, fit for an error message or a log.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
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
    OutOfDescriptors,
)
from coe.experts.descriptors import shortage_log
from coe.urls import secrets_in

MAX_CHARACTERS = 500
"""Characters of a redacted line."""
_MAX_INPUT = 4096
"""Characters of a text that are read at all."""
_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]{1,15}://)(?:[^\s/?#@\"'<>]*@)?([^\s?#\"'<>]*)(?:[?#][^\s\"'<>]*)?", re.IGNORECASE
)
_LABELLED = re.compile(
    r"(\b(?:bearer|basic|token|secret|password|(?:x-)?api[-_ ]?key)\b(?:\s+provided)?[\"']?\s*[:=]?\s*[\"']?)"
    r"(?=[^\s\"',;]*\d)[^\s\"',;]{8,}",
    re.IGNORECASE,
)
_KEYS = re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|coe|ghp|glpat)[-_][A-Za-z0-9_*.-]{6,}|\bAIza[\w-]{10,}|\beyJ[\w.-]{20,}")
_OPAQUE = re.compile(r"\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}\b")
_HIDDEN = "***"


def redacted(text: str, *, secrets: Iterable[str] = ()) -> str:
    """Return one bounded line without `secrets`, credentials and queries of URLs, and what looks like an API key."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    text = text[:_MAX_INPUT]
    text = _URL.sub(r"\1\2", text)
    text = _LABELLED.sub(rf"\1{_HIDDEN}", text)
    text = _OPAQUE.sub(_HIDDEN, _KEYS.sub(_HIDDEN, text))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_CHARACTERS]


LONGEST_RETRY = 3600.0
"""Seconds; a server that asks for more is believed so far."""
MAX_CHAIN = 8
"""Causes of an exception that are searched for the one that names the fault."""
SHORTAGE_RETRY = 1.0
"""Seconds after which a request may find a file descriptor again."""
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_CLIENTS_FAULT = frozenset({400, 413, 415, 422})
_NOT_OFFERED = frozenset({404, 405, 501})
_CAUSES: Mapping[int, Cause] = {
    401: "unauthorized",
    402: "quota_exceeded",
    403: "forbidden",
    404: "not_found",
    405: "not_found",
    408: "timeout",
    410: "not_found",
    429: "rate_limited",
    501: "not_found",
    503: "overloaded",
    529: "overloaded",
}
_QUOTA_CODES = frozenset({"insufficient_quota", "quota_exceeded", "billing_hard_limit_reached", "billing_not_active"})
_MODEL_CODES = frozenset({"model_not_found", "DeploymentNotFound"})
_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)
_REFUSED = f"[Errno {errno.ECONNREFUSED}]"


class ErrorMapping:
    """Makes the errors of one expert. Servers like to repeat what they were sent: the `key` and what is secret in the
    `base_url` are struck from their words."""

    def __init__(self, expert: str, *, key: str, base_url: str = "") -> None:
        self.expert = expert
        self._secrets = tuple(secret for secret in (key, *secrets_in(base_url)) if secret)

    def unreachable(self, error: BaseException) -> ExpertUnreachable:
        """No connection came about, because of `error`."""
        fault = ExpertUnreachable(f"expert {self.expert!r} cannot be reached", expert=self.expert)
        fault.cause = connection_cause(error) or "unreachable"
        return fault

    def no_descriptor(self) -> OutOfDescriptors:
        """No connection could be opened, because this process has no file descriptor left."""
        shortage_log().report()
        error = OutOfDescriptors(
            "the gateway has no file descriptor left for another connection to an expert; try again later, or raise "
            "its limit of open files",
            expert=self.expert,
        )
        error.retry_after = SHORTAGE_RETRY
        return error

    def broken(self, what: str, *, cause: Cause = "connection_lost") -> ExpertUnavailable:
        """The connection failed or broke off, or the server says that it cannot go on."""
        fault = ExpertUnavailable(f"expert {self.expert!r} {what}", expert=self.expert)
        fault.cause = cause
        return fault

    def failed(self, where: str, told: Any) -> ExpertUnavailable:
        """The server sent an error where an answer or the rest of it should be."""
        return self.broken(f"{where}: {self._line(message_of(told))}", cause="server_error")

    def garbage(self, what: str) -> ExpertInvalidResponse:
        return ExpertInvalidResponse(f"expert {self.expert!r} answered {what}", expert=self.expert)

    def late(self, what: str) -> ExpertTimeout:
        return ExpertTimeout(f"expert {self.expert!r} {what}", expert=self.expert)

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes, *, api: Api) -> ExpertError:
        """The error for an HTTP status other than 200. Where another API than chat is not offered, that tells nothing
        about the server's health."""
        told, word = self._line(_reason(body)), self._name(body, "code")
        error = self._refused(status, told, word=word, param=self._name(body, "param"))
        error.cause = _cause(status, word=word, told=told)
        error.detail = f"HTTP {status}" + (f", code {word}" if word else "")
        if isinstance(error, (ExpertUnavailable, ExpertBusy)):
            error.retry_after = retry_after(headers.get("retry-after", ""), now=time.time())
        if api != "chat" and status in _NOT_OFFERED:
            error.unhealthy = False
        return error

    def _refused(self, status: int, told: str, *, word: str | None, param: str | None) -> ExpertError:
        if status in _CLIENTS_FAULT:
            message = f"expert {self.expert!r} rejected the request: {told}"
            return ExpertRejected(message, expert=self.expert, status=status, upstream_code=word, param=param)
        if status in (401, 403):
            return self.broken(f"refused its api_key (HTTP {status}); check it in experts.yaml")
        if status == 429:
            return ExpertBusy(f"expert {self.expert!r} answered HTTP {status}: {told}", expert=self.expert)
        error = self.broken(f"answered HTTP {status}: {told}")
        error.queue_full = status == 503
        return error

    def _name(self, body: bytes, field: str) -> str | None:
        """What a field of an error body in OpenAI's shape says where that is a name, not prose, nor the key."""
        try:
            name = orjson.loads(body)["error"][field]
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
            return None
        return name if isinstance(name, str) and _NAME.fullmatch(name) and name not in self._secrets else None

    def _line(self, text: str) -> str:
        return redacted(text, secrets=self._secrets) or "no reason given"


def connection_cause(error: BaseException) -> Cause | None:
    """Return why no connection came about, from an exception or one that it was raised from; None for another fault."""
    for one in _chain(error):
        if isinstance(one, (socket.gaierror, UnicodeError)):
            return "name_resolution"
        if isinstance(one, ssl.SSLError):
            return "tls_error"
        if isinstance(one, ConnectionRefusedError) or _REFUSED in str(one):  # one of several addresses, tried in turn
            return "connection_refused"
        if isinstance(one, TimeoutError):
            return "connect_timeout"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    for _ in range(MAX_CHAIN):
        yield error
        following = error.__cause__ or error.__context__
        if following is None:
            return
        error = following


def _cause(status: int, *, word: str | None, told: str) -> Cause:
    if word in _QUOTA_CODES:
        return "quota_exceeded"
    if word in _MODEL_CODES or (status == 404 and _MODEL.search(told)):
        return "model_not_found"
    if status in _CLIENTS_FAULT:
        return "rejected"
    return _CAUSES.get(status, "server_error" if status >= 500 else "unexpected_status")


def retry_after(value: str, *, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (seconds, or an HTTP date against Unix time `now`), at most one hour;
    None where it says nothing readable (RFC 9110, 10.2.3)."""
    value = value.strip()
    try:
        seconds = float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY)


def message_of(error: Any) -> str:
    """The reason inside an error body, however it is wrapped: servers send anything."""
    for _ in range(4):
        if not isinstance(error, dict):
            break
        error = next((error[key] for key in ("error", "message", "detail") if error.get(key)), "no reason given")
    try:
        return str(error)
    except RecursionError:
        return "no readable reason"


def _reason(body: bytes) -> str:
    try:
        return message_of(orjson.loads(body))
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")
