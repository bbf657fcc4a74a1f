"""What a request's headers ask for: its session, how thrifty its routing should be, its time, its trace."""

from __future__ import annotations

import math

from starlette.types import Scope

from coe.core import Wishes
from coe.errors import HeadersTooLarge, InvalidRequest
from coe.registry import Policy

MAX_SESSION = 128
MAX_HEADERS = 32 * 1024
"""Bytes of all headers together."""
_PROPAGATED = (b"traceparent", b"tracestate")


def read_wishes(scope: Scope, policy: Policy) -> Wishes:
    """From x-session-id, x-coe-thrift, x-coe-timeout and the trace context; what is declared without them. Raises
    InvalidRequest for a number that is none or outside the declared limits."""
    session, thrift, timeout, size = None, policy.thrift, policy.timeout, 0
    trace = {}
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        if name == b"x-session-id" and 0 < len(value) <= MAX_SESSION:
            session = value.decode("latin-1")
        elif name == b"x-coe-thrift":
            thrift = _number(value, "x-coe-thrift", *policy.thrift_limits)
        elif name == b"x-coe-timeout":
            timeout = min(_number(value, "x-coe-timeout", 0.001, 86400.0), policy.timeout)
        elif name in _PROPAGATED:
            trace[name.decode()] = value.decode("latin-1")
    if size > MAX_HEADERS:
        raise HeadersTooLarge(f"the headers are longer than {MAX_HEADERS // 1024} KiB together")
    return Wishes(session, thrift, timeout, trace)


def _number(value: bytes, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}", param=name)
    return number
