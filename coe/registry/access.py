"""Limits of a gateway process, API keys and what each may use, and which web pages and host names are accepted."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from coe.core import Scope
from coe.registry.base import Count, Name, Positive, StrictModel

_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?")
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}


def _origin(text: str) -> str:
    """Normalizes an origin to the form in which browsers send it."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        raise PydanticCustomError(
            "origin", "an origin is scheme://host or scheme://host:port, without a path; write https://app.example.com"
        )
    default = (found["scheme"], found["port"]) in _DEFAULT_PORTS
    return f"{found['scheme']}://{found['host']}" if default else found[0]


def _host(text: str) -> str:
    if not _HOST.fullmatch(text.lower()):
        raise PydanticCustomError(
            "host", "a host is a name without scheme and port; write llm.example.com, or *.example.com for all below it"
        )
    return text.lower()


Origin = Annotated[str, AfterValidator(_origin)]
Host = Annotated[str, AfterValidator(_host)]


class Limits(StrictModel):
    """What one gateway process accepts."""

    concurrent_requests: Count = 1024
    queued_requests: Annotated[int, Field(ge=0)] = 1024
    """Requests that wait for a permit, each caller in turn; more are refused, of the caller with most first."""
    queue_timeout: Positive = 10.0
    """Seconds that a request waits for a permit."""
    max_body_mb: Annotated[float, Field(ge=0.001, le=1024)] = 20.0
    body_memory_mb: Annotated[int, Field(ge=1)] = 512
    """Memory for bodies over 64 KiB until their answers begin, at least 12 times max_body_mb; one key gets half."""
    max_json_values: Annotated[int, Field(ge=1000)] = 500_000
    """JSON values of a body over 64 KiB; an object or array counts as 10."""


class KeyLimits(StrictModel):
    """What one API key may use; left out: no limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Input and output together: estimated before the answer, corrected after it."""
    concurrent_requests: Count | None = None
    dollars_per_day: Positive | None = None
    """By the experts' prices; a day begins at midnight UTC."""
    dollars_per_month: Positive | None = None


class ApiKey(StrictModel):
    """One API key; `coe key NAME` makes one and prints this entry."""

    name: Name
    """Shown in logs and records in place of the key."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the key itself, which is kept nowhere."""
    tenant: Name | None = None
    """Whose requests these are; left out, the key's name."""
    scopes: frozenset[Scope] = frozenset(("chat", "route", "feedback"))
    limits: KeyLimits = KeyLimits()


class AccessSpec(StrictModel):
    """Who may use the service. Without keys everyone may, and the gateway listens on loopback only."""

    keys: tuple[ApiKey, ...] = ()
    counters: Annotated[str, Field(pattern=r"^(memory|rediss?://.+)$")] = "memory"
    """Where the use of keys is counted: each gateway for itself, kept in its state folder, or redis://HOST:PORT/DB for
    all of them together."""
    allowed_origins: tuple[Origin, ...] = ()
    """Origins of web pages, beside the gateway's own, whose scripts may call the API, such as https://app.example.com.
    Without keys they may do everything."""
    allowed_hosts: tuple[Host, ...] = ()
    """Host names by which requests may address this gateway, such as llm.example.com or *.example.com. IP addresses and
    localhost are always accepted. Left out, a gateway on loopback accepts only those, any other every name."""
