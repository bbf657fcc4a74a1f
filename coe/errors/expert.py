"""What an expert did instead of answering."""

from __future__ import annotations

from coe.errors.cause import FOR_ALL_CALLERS, Cause
from coe.errors.request import RequestError


class ExpertError(RequestError):
    """An expert failed the request. `retryable`: another expert may be asked instead; `asked`: this one was at all;
    `unhealthy`: it tells against its server.

    `cause` says why in one word of a closed vocabulary. `detail` adds facts that are safe to log: it holds neither
    secrets nor text of the server, which may quote a request.
    """

    code = "expert_error"
    retryable = True
    asked = True
    unhealthy = True
    cause: Cause = "error"
    detail = ""

    def __init__(self, message: str, *, expert: str) -> None:
        super().__init__(message)
        self.expert = expert

    @property
    def concerns_all(self) -> bool:
        """True for a failure that every caller would meet, False for one that a single request may have provoked."""
        return self.cause in FOR_ALL_CALLERS


class ExpertUnavailable(ExpertError):
    """The expert refused or dropped the connection, answered 5xx before the first piece, or its breaker is open.

    `full`: its server answered 503; `servers`: the addresses at which nothing can be had for the same request.
    """

    code = "expert_unavailable"
    full = False
    servers: frozenset[str] = frozenset()


class ExpertUnreachable(ExpertUnavailable):
    """No connection came about, so the expert never saw the request."""

    cause: Cause = "unreachable"


class ExpertAsleep(ExpertUnavailable):
    """The expert takes turns on a device with others and was not woken in time, so it never saw the request."""

    code = "expert_asleep"
    cause: Cause = "asleep"
    asked = False
    unhealthy = False


class OutOfDescriptors(ExpertError):
    """This process has no file descriptor left for a connection to the expert, which is not the expert's fault. Another
    expert would need one too."""

    code = "overloaded"
    cause: Cause = "gateway_limit"
    retryable = False
    asked = False
    unhealthy = False


class ExpertBusy(ExpertError):
    """The expert answered 429 before the first piece."""

    code = "expert_busy"
    cause: Cause = "rate_limited"
    unhealthy = False


class ExpertTimeout(ExpertError):
    """The expert gave no first piece within the declared time."""

    code = "expert_timeout"
    cause: Cause = "timeout"


class ExpertGarbage(ExpertError):
    """The expert answered 200 with something that is not the protocol."""

    code = "expert_garbage"
    cause: Cause = "invalid_response"


class ExpertRejected(ExpertError):
    """The expert judged the request itself wrong (4xx), as others would: after the first to judge it none is asked.

    `word` is its own code for what is wrong, such as context_length_exceeded, and `param` the field that is.
    """

    code = "expert_rejected"
    cause: Cause = "rejected"
    retryable = False
    unhealthy = False

    def __init__(
        self, message: str, *, expert: str, status: int, param: str | None = None, word: str | None = None
    ) -> None:
        super().__init__(message, expert=expert)
        self.status = status
        self.param = param
        self.word = word
