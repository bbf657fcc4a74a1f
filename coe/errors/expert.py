"""What an expert did instead of answering."""

from __future__ import annotations

from coe.errors.request import RequestError


class ExpertError(RequestError):
    """An expert failed the request. `retryable`: another expert may be asked instead; `asked`: this one was at all;
    `unhealthy`: it tells against its server."""

    code = "expert_error"
    retryable = True
    asked = True
    unhealthy = True

    def __init__(self, message: str, *, expert: str) -> None:
        super().__init__(message)
        self.expert = expert


class ExpertUnavailable(ExpertError):
    """The expert refused or dropped the connection, answered 5xx before the first piece, or its breaker is open.

    `full`: its server answered 503; `servers`: the addresses at which nothing can be had for the same request.
    """

    code = "expert_unavailable"
    full = False
    servers: frozenset[str] = frozenset()


class ExpertUnreachable(ExpertUnavailable):
    """No connection came about, so the expert never saw the request."""


class ExpertAsleep(ExpertUnavailable):
    """The expert takes turns on a device with others and was not woken in time, so it never saw the request."""

    code = "expert_asleep"
    asked = False
    unhealthy = False


class OutOfDescriptors(ExpertError):
    """This process has no file descriptor left for a connection to the expert, which is not the expert's fault. Another
    expert would need one too."""

    code = "overloaded"
    retryable = False
    asked = False
    unhealthy = False


class ExpertBusy(ExpertError):
    """The expert answered 429 before the first piece."""

    code = "expert_busy"
    unhealthy = False


class ExpertTimeout(ExpertError):
    """The expert gave no first piece within the declared time."""

    code = "expert_timeout"


class ExpertGarbage(ExpertError):
    """The expert answered 200 with something that is not the protocol."""

    code = "expert_garbage"


class ExpertRejected(ExpertError):
    """The expert judged the request itself wrong (4xx), as others would: after the first to judge it none is asked.

    `word` is its own code for what is wrong, such as context_length_exceeded, and `param` the field that is.
    """

    code = "expert_rejected"
    retryable = False
    unhealthy = False

    def __init__(
        self, message: str, *, expert: str, status: int, param: str | None = None, word: str | None = None
    ) -> None:
        super().__init__(message, expert=expert)
        self.status = status
        self.param = param
        self.word = word
