"""Errors of experts, and the causes why an expert did not answer.

Every error carries the `expert` and a `cause` from a closed vocabulary, which is safe to use as a metric label, in
headers and in records. The class decides whether another expert is tried and whether the failure counts against the
server's circuit breaker.
"""

from __future__ import annotations

from typing import Literal, get_args

from coe.errors.request import RequestError

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
"""docs/concepts/failure-handling.md describes each. `circuit_open` is an open breaker of unknown cause, `hedged`
an expert that was slower than the one called in parallel, and `error` any other failure.
"""
CAUSES: tuple[Cause, ...] = get_args(Cause)

CALLER_INDEPENDENT_CAUSES: frozenset[Cause] = frozenset(
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
"""Causes that no request can provoke: no connection, or a rejected account. They affect every caller.

Any other failure may be due to one caller. Providers also answer 403 for moderated content, and 404 for an unknown file
that a request names.
"""


class ExpertError(RequestError):
    """An expert failed the request.

    `retryable`: another expert may be tried. `request_sent`: the request was sent to this expert. `unhealthy`: the
    failure counts against the server's circuit breaker. `cause` is one word of a closed vocabulary. `detail` adds facts
    for logs; it holds neither secrets nor text of the server, which may quote a request.
    """

    code = "expert_error"
    retryable = True
    request_sent = True
    unhealthy = True
    cause: Cause = "error"
    detail = ""

    def __init__(self, message: str, *, expert: str) -> None:
        super().__init__(message)
        self.expert = expert

    @property
    def caller_independent(self) -> bool:
        """True if every caller would get this failure, False if a single request may have provoked it."""
        return self.cause in CALLER_INDEPENDENT_CAUSES


class ExpertUnavailable(ExpertError):
    """The expert refused or dropped the connection, answered 5xx before the first chunk, or its circuit breaker is
    open.

    `queue_full`: its server answered 503. `unavailable_servers`: addresses that the same request must not try again.
    """

    code = "expert_unavailable"
    queue_full = False
    unavailable_servers: frozenset[str] = frozenset()


class ExpertUnreachable(ExpertUnavailable):
    """No connection could be opened, so the expert never received the request."""

    cause: Cause = "unreachable"


class ExpertAsleep(ExpertUnavailable):
    """The expert shares a device and did not wake in time, so it never received the request."""

    code = "expert_asleep"
    cause: Cause = "asleep"
    request_sent = False
    unhealthy = False


class OutOfDescriptors(ExpertError):
    """This process has no file descriptor left for a connection. The expert is healthy; no other expert can help."""

    code = "overloaded"
    cause: Cause = "gateway_limit"
    retryable = False
    request_sent = False
    unhealthy = False


class ExpertBusy(ExpertError):
    """The expert answered 429 before the first chunk."""

    code = "expert_busy"
    cause: Cause = "rate_limited"
    unhealthy = False


class ExpertTimeout(ExpertError):
    """The expert sent no first chunk within its timeout."""

    code = "expert_timeout"
    cause: Cause = "timeout"


class ExpertInvalidResponse(ExpertError):
    """The expert answered 200 with a body that violates the API."""

    code = "expert_invalid_response"
    cause: Cause = "invalid_response"


class ExpertRejected(ExpertError):
    """The expert rejected the request itself (4xx). Others would too, so no other expert is tried.

    `status` is its HTTP status, `upstream_code` its own error code, such as context_length_exceeded, and `param` the
    body field at fault.
    """

    code = "expert_rejected"
    cause: Cause = "rejected"
    retryable = False
    unhealthy = False

    def __init__(
        self, message: str, *, expert: str, status: int, param: str | None = None, upstream_code: str | None = None
    ) -> None:
        super().__init__(message, expert=expert)
        self.status = status
        self.param = param
        self.upstream_code = upstream_code
