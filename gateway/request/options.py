"""What a request's headers ask for: its session, how thrifty its routing should be, its time, documents, its trace,
and of its API the version."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from starlette.types import Scope

from coe.core import Api, Purpose, RequestOptions, RetrievalMode
from coe.errors import HeadersTooLarge, InvalidRequest
from coe.registry import Policy

MAX_SESSION = 128
MAX_HEADERS = 32 * 1024
"""Bytes of all headers together."""
MAX_VERSION = 2048
"""Characters of each header that names versions."""
_OPTIONS: Mapping[bytes, tuple[str, Mapping[bytes, Any]]] = {
    b"x-coe-retrieval": ("retrieval", {word.encode(): word for word in get_args(RetrievalMode)}),
    b"x-coe-explain": ("explain", {b"0": False, b"1": True}),
    b"x-coe-purpose": ("purpose", {word.encode(): word for word in get_args(Purpose)}),
}
"""Headers with a fixed set of values, and the field of Wishes that each sets."""
_PROPAGATED = (b"traceparent", b"tracestate")
_VERSIONS = (b"anthropic-version", b"anthropic-beta")
"""Of Messages requests these go on as well. No other header of a client ever reaches an expert's server."""


def read_options(scope: Scope, policy: Policy, *, tenant: str | None = None, api: Api = "chat") -> RequestOptions:
    """Reads x-session-id, the x-coe-* headers, the trace context and, for the Messages API, Anthropic's versions.

    What is declared holds without them. Raises InvalidRequest for an unknown word, a number outside the declared
    limits, or a version that no server should see.
    """
    session, cost_weight, timeout, size = None, policy.cost_weight, policy.timeout, 0
    options: dict[str, Any] = {}
    trace: dict[str, str] = {}
    versioned = api == "messages"
    versions: dict[str, str] = {}
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        if name == b"x-session-id" and 0 < len(value) <= MAX_SESSION:
            session = value.decode("latin-1")
        elif name == b"x-coe-cost-weight":
            cost_weight = _number(value, "x-coe-cost-weight", *policy.cost_weight_limits)
        elif name == b"x-coe-timeout":
            timeout = min(_number(value, "x-coe-timeout", 0.001, 86400.0), policy.timeout)
        elif name in _OPTIONS:
            option, words = _OPTIONS[name]
            options[option] = _word(value, name.decode(), words)
        elif name in _PROPAGATED and value.isascii():  # as the standard has it; clients of experts choke on others
            trace[name.decode()] = value.decode("latin-1")
        elif versioned and value and name in _VERSIONS:
            _add_version(versions, name.decode(), value.decode("latin-1"))
    if size > MAX_HEADERS:
        raise HeadersTooLarge(f"the headers are longer than {MAX_HEADERS // 1024} KiB together")
    return RequestOptions(session, cost_weight, timeout, trace, tenant=tenant, version_headers=versions, **options)


def _add_version(versions: dict[str, str], name: str, value: str) -> None:
    """Several lines of one name are one list."""
    told = f"{versions[name]},{value}" if name in versions else value
    if len(told) > MAX_VERSION or not (told.isascii() and told.isprintable()):
        raise InvalidRequest(f"{name} must be at most {MAX_VERSION} printable ASCII characters", param=name)
    versions[name] = told


def _word(value: bytes, name: str, words: Mapping[bytes, Any]) -> Any:
    if value not in words:
        raise InvalidRequest(f"{name} must be one of {b', '.join(words).decode()}", param=name)
    return words[value]


def _number(value: bytes, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}", param=name)
    return number
