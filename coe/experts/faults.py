"""What went wrong at one expert's server, as an error in the expert's name: one line, bounded, without its key."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from coe.core import Api
from coe.errors import (
    ExpertBusy,
    ExpertError,
    ExpertGarbage,
    ExpertRejected,
    ExpertTimeout,
    ExpertUnavailable,
    ExpertUnreachable,
    OutOfDescriptors,
)
from coe.experts.descriptors import shortage_log

LONGEST_RETRY = 3600.0
"""Seconds; a server that asks for more is believed so far."""
SHORTAGE_RETRY = 1.0
"""Seconds after which a request may find a file descriptor again."""
LONGEST_REASON = 500
_NAME = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_CLIENTS_FAULT = frozenset({400, 413, 415, 422})
_NOT_OFFERED = frozenset({404, 405, 501})


class Faults:
    """Makes the errors of one expert. `key` is its api_key, which servers like to repeat."""

    def __init__(self, expert: str, *, key: str) -> None:
        self.expert = expert
        self._key = key

    def unreachable(self) -> ExpertUnreachable:
        return ExpertUnreachable(f"expert {self.expert!r} cannot be reached", expert=self.expert)

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

    def broken(self, what: str) -> ExpertUnavailable:
        """The connection failed or broke off, or the server says that it cannot go on."""
        return ExpertUnavailable(f"expert {self.expert!r} {what}", expert=self.expert)

    def failed(self, where: str, told: Any) -> ExpertUnavailable:
        """The server sent an error where an answer or the rest of it should be."""
        return self.broken(f"{where}: {self._line(message_of(told))}")

    def garbage(self, what: str) -> ExpertGarbage:
        return ExpertGarbage(f"expert {self.expert!r} answered {what}", expert=self.expert)

    def late(self, what: str) -> ExpertTimeout:
        return ExpertTimeout(f"expert {self.expert!r} {what}", expert=self.expert)

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes, *, api: Api) -> ExpertError:
        """The error for an HTTP status other than 200. Where another API than chat is not offered, that tells nothing
        about the server's health."""
        told = self._line(_reason(body))
        if status in _CLIENTS_FAULT:
            message = f"expert {self.expert!r} rejected the request: {told}"
            names = {"word": self._name(body, "code"), "param": self._name(body, "param")}
            return ExpertRejected(message, expert=self.expert, status=status, **names)
        if status in (401, 403):
            return self.broken(f"refused its api_key (HTTP {status}); check it in experts.yaml")
        message = f"answered HTTP {status}: {told}"
        busy = ExpertBusy(f"expert {self.expert!r} {message}", expert=self.expert) if status == 429 else None
        error = busy or self.broken(message)
        if isinstance(error, ExpertUnavailable):
            error.full = status == 503
        error.retry_after = retry_after(headers.get("retry-after", ""), now=time.time())
        if api != "chat" and status in _NOT_OFFERED:
            error.unhealthy = False
        return error

    def _name(self, body: bytes, field: str) -> str | None:
        """What a field of an error body in OpenAI's shape says where that is a name, not prose, nor the key."""
        try:
            name = orjson.loads(body)["error"][field]
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
            return None
        return name if isinstance(name, str) and _NAME.fullmatch(name) and name != self._key else None

    def _line(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:LONGEST_REASON] or "no reason given"


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
