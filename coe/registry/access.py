"""The sections `limits` and `access` of experts.yaml: limits of a gateway process, API keys, origins, host names."""

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
    """Normalize an origin to the form that browsers send."""
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
    """Limits of one gateway process."""

    concurrent_requests: Count = 1024
    """Largest number of requests in progress. Further requests wait in a queue."""
    queued_requests: Annotated[int, Field(ge=0)] = 1024
    """Length of the queue, which serves API keys in turn. When it is full, the key with most waiting requests loses its
    newest one."""
    queue_timeout: Positive = 10.0
    """Seconds that a request waits in the queue before it fails with 429."""
    max_body_mb: Annotated[float, Field(ge=0.001, le=1024)] = 20.0
    """Largest size of a request body in MB."""
    body_memory_mb: Annotated[int, Field(ge=1)] = 512
    """Memory in MB for bodies over 64 KiB until their responses begin, at least 12 times max_body_mb. One key may use
    half of it."""
    max_json_values: Annotated[int, Field(ge=1000)] = 500_000
    """Largest number of JSON values in a body over 64 KiB. An object or array counts as 10."""


class KeyLimits(StrictModel):
    """Limits of one API key. Default: none."""

    requests_per_minute: Count | None = None
    """Largest number of requests per minute."""
    tokens_per_minute: Count | None = None
    """Largest number of input and output tokens per minute: estimated before the response, corrected after it."""
    concurrent_requests: Count | None = None
    """Largest number of requests in progress."""
    dollars_per_day: Positive | None = None
    """Largest cost per day in US dollars, by the experts' prices. A day begins at midnight UTC."""
    dollars_per_month: Positive | None = None
    """Largest cost per calendar month (UTC) in US dollars."""


class ApiKey(StrictModel):
    """One API key. `coe key NAME` creates a key and prints its entry."""

    name: Name
    """Name of the key in logs and records."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 digest of the key, hexadecimal. The key itself is not stored."""
    tenant: Name | None = None
    """Tenant that the key's requests belong to. Default: the key's name."""
    scopes: frozenset[Scope] = frozenset(("chat", "route", "feedback"))
    """Permissions of the key."""
    limits: KeyLimits = KeyLimits()
    """Limits of the key."""


class AccessSpec(StrictModel):
    """Access control. Without keys everyone has access, and the gateway listens on loopback only."""

    keys: tuple[ApiKey, ...] = ()
    """API keys."""
    counters: Annotated[str, Field(pattern=r"^(memory|rediss?://.+)$")] = "memory"
    """Where the usage of keys is counted: `memory` (each gateway separately, saved in its state folder) or
    redis://HOST:PORT/DB (all gateways together)."""
    allowed_origins: tuple[Origin, ...] = ()
    """Origins of web pages that may call the API, besides the gateway's own, such as https://app.example.com. Without
    keys they have full access."""
    allowed_hosts: tuple[Host, ...] = ()
    """Host names that requests may use for this gateway, such as llm.example.com or *.example.com. IP addresses and
    localhost are always accepted. Default: a gateway on loopback accepts only those, any other gateway accepts every
    name."""
