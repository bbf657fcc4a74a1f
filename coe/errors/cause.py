"""The causes for which an expert did not answer: a closed vocabulary, fit for metric labels, headers and records."""

from __future__ import annotations

from typing import Literal, get_args

Cause = Literal[
    "connection_refused",
    "connect_timeout",
    "name_resolution",
    "tls_error",
    "unreachable",
    "connection_lost",
    "unauthorized",
    "forbidden",
    "model_not_found",
    "not_found",
    "rate_limited",
    "quota_exceeded",
    "overloaded",
    "server_error",
    "unexpected_status",
    "timeout",
    "invalid_response",
    "rejected",
    "unsupported",
    "asleep",
    "hedged",
    "circuit_open",
    "gateway_limit",
    "error",
]
"""docs/concepts/failure-handling.md describes each. `circuit_open` stands for an open breaker whose own cause is not
known, `hedged` for an expert that was slower than the one asked beside it, `error` for all that has no word of its own.
"""
CAUSES: tuple[Cause, ...] = get_args(Cause)

FOR_ALL_CALLERS: frozenset[Cause] = frozenset(
    {
        "connection_refused",
        "connect_timeout",
        "name_resolution",
        "tls_error",
        "unreachable",
        "unauthorized",
        "quota_exceeded",
    }
)
"""Failures that no request can provoke, so that every caller meets them: no connection, or an account that is refused.
All others may be one caller's doing: providers answer 403 for what their moderation stops, and 404 for an unknown file
that a request names."""
