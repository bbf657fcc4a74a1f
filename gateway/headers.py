"""What a request's headers ask for: its session, and how thrifty its routing should be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starlette.types import Scope

from coe.errors import InvalidRequest
from coe.registry import Policy

MAX_SESSION = 128


@dataclass(frozen=True, slots=True)
class Wishes:
    """`session` from x-session-id, None without one; `thrift` from x-coe-thrift, the declared one without."""

    session: str | None
    thrift: float


def read_wishes(scope: Scope, policy: Policy) -> Wishes:
    """Raises InvalidRequest for a thrift that is no number or outside the declared limits."""
    session, thrift = None, policy.thrift
    for name, value in scope["headers"]:
        if name == b"x-session-id" and 0 < len(value) <= MAX_SESSION:
            session = value.decode("latin-1")
        elif name == b"x-coe-thrift":
            thrift = _thrift(value, policy)
    return Wishes(session, thrift)


def _thrift(value: bytes, policy: Policy) -> float:
    low, high = policy.thrift_limits
    try:
        thrift = float(value)
    except ValueError:
        thrift = math.nan
    if not low <= thrift <= high:
        raise InvalidRequest(f"x-coe-thrift must be a number from {low:g} to {high:g}", param="x-coe-thrift")
    return thrift
