"""Every error CoE raises on purpose, as one tree; `gateway/errors.py` holds the one table from here to HTTP.

CoEError
├── ConfigError            experts.yaml or the environment is wrong        (stops the process at start)
├── ArtifactError          an artifact is missing, damaged or does not fit (stops the process at start)
├── DataError              a data file cannot be used                      (ends the job)
│   └── DocumentError      one of many files has no text that can be used  (the job goes on)
├── FleetError             a local expert server cannot be run
├── LogError               the routing log cannot be read or written
│   └── DamagedEntry       what stands there is no record and no event of feedback
├── RetrievalError         the document store is away, damaged or full
│   └── IndexMismatch      another encoder made its vectors
├── JobError               another job is at work, or took this one's place
└── RequestError           one request cannot be answered
    ├── InvalidRequest     the client's request is wrong                   400
    │   ├── BodyTooLarge                                                   413
    │   ├── WrongMediaType                                                 415
    │   ├── BodyTooSlow                                                    408
    │   ├── HeadersTooLarge                                                431
    │   ├── ModelNotFound                                                  404
    │   ├── UnknownRequest feedback for a request that is not in the log   404
    │   ├── DocumentNotFound   no such document, or no store of any         404
    │   ├── DocumentsConflict  one id twice in a request                    409
    │   ├── Unauthorized   no API key, or one that is not known            401
    │   └── Forbidden      the key's scopes do not cover this              403
    ├── Overloaded         no permit free in time                          429
    ├── LimitReached       what the API key may use is used up             429
    ├── Draining           the process is about to end                     503
    ├── LogUnavailable     feedback cannot be kept now                     503
    ├── DocumentsUnavailable   the document store does not do it now       503
    ├── DeadlineExceeded   the request's own time is over                  504
    └── ExpertError        the expert's fault; carries `expert`
        ├── ExpertUnavailable  reset, answered 5xx; breaker open           503
        │   ├── ExpertUnreachable  no connection came about                503
        │   └── ExpertAsleep       it did not get its turn on a device     503
        ├── ExpertBusy         answered 429                                429
        ├── ExpertTimeout      no first piece in time                      504
        ├── ExpertRejected     answered 4xx: the client's body is at fault 4xx as given
        └── ExpertGarbage      answered something that is not the protocol 502
"""

from __future__ import annotations


class CoEError(Exception):
    """Base of every error raised on purpose. `str(error)` names the place, what is wrong and the remedy."""


class ConfigError(CoEError):
    """A declared setting is wrong. `problems` holds one line per mistake, each `file:line: what`."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ArtifactError(CoEError):
    """An artifact is missing, damaged, or was made for other categories than the ones declared."""


class DataError(CoEError):
    """A data file is missing, unreadable, or lacks what the job needs."""


class DocumentError(DataError):
    """A file to be indexed is refused, broken or without text. The message says why and does not name it."""


class FleetError(CoEError):
    """A local expert server could not be started or kept running."""


class LogError(CoEError):
    """The routing log could not be opened, read or written."""


class DamagedEntry(LogError):
    """An entry of the log is no record, or no event of feedback."""


class RetrievalError(CoEError):
    """The document store could not be opened, read or written."""


class IndexMismatch(RetrievalError):
    """The vectors in the document store are another encoder's, so questions cannot be compared with them."""


class JobError(CoEError):
    """A job that must be the only one of its kind is not, or cannot tell any longer."""


class RequestError(CoEError):
    """One request cannot be answered; the process is fine.

    `code` is the machine-readable word of OpenAI's error body, `param` the body field at fault; `retry_after`, in
    seconds, is when trying again may help, None where that is not known.
    """

    code = "internal_error"
    param: str | None = None
    retry_after: float | None = None


class InvalidRequest(RequestError):
    """The client's request is wrong; retrying it unchanged cannot help."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code:
            self.code = code


class BodyTooLarge(InvalidRequest):
    """The body is longer than the declared limit."""

    code = "body_too_large"


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    code = "request_timeout"


class WrongMediaType(InvalidRequest):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class ModelNotFound(InvalidRequest):
    """`model` is neither `auto` nor a declared expert."""

    code = "model_not_found"


class UnknownRequest(InvalidRequest):
    """Feedback for a request that the routing log does not hold, or that is another tenant's."""

    code = "feedback_unknown_request"


class DocumentNotFound(InvalidRequest):
    """The document store holds no such document, or none is declared."""

    code = "document_not_found"


class DocumentsConflict(InvalidRequest):
    """One request holds two documents of the same id."""

    code = "duplicate_id"


class HeadersTooLarge(InvalidRequest):
    """The headers together are longer than any client needs."""

    code = "headers_too_large"


class Unauthorized(InvalidRequest):
    """No API key came with the request, or one that is not known."""

    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    """The API key is known and may not do this."""

    code = "insufficient_scope"


class _Later(RequestError):
    """Something is used up for now. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(_Later):
    """No permit came free in time."""

    code = "overloaded"


class LimitReached(_Later):
    """What the API key may use in this minute, day or month is used up."""

    code = "rate_limit_exceeded"


class Draining(_Later):
    """The process finishes what it has and takes nothing new."""

    code = "draining"


class LogUnavailable(_Later):
    """The log that must look up a request or keep feedback on it does not answer or takes nothing."""

    code = "log_unavailable"


class DocumentsUnavailable(_Later):
    """The document store is away, another encoder's, or too slow."""

    code = "documents_unavailable"


class DeadlineExceeded(RequestError):
    """The time the request had is over."""

    code = "deadline_exceeded"


class ExpertError(RequestError):
    """An expert failed the request. `retryable`: another expert may be asked instead; `attempts`: how many were;
    `asked`: this one was at all; `unhealthy`: it tells against its server."""

    code = "expert_error"
    retryable = True
    asked = True
    unhealthy = True
    attempts = 1

    def __init__(self, message: str, *, expert: str) -> None:
        super().__init__(message)
        self.expert = expert


class ExpertUnavailable(ExpertError):
    """The expert refused or dropped the connection, answered 5xx before the first piece, or its breaker is open."""

    code = "expert_unavailable"


class ExpertUnreachable(ExpertUnavailable):
    """No connection came about, so the expert never saw the request."""


class ExpertAsleep(ExpertUnavailable):
    """The expert takes turns on a device with others and was not woken in time, so it never saw the request."""

    code = "expert_asleep"
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
    """The expert judged the request itself wrong (4xx): every expert may, so none other is asked."""

    code = "expert_rejected"
    retryable = False
    unhealthy = False

    def __init__(self, message: str, *, expert: str, status: int, param: str | None = None) -> None:
        super().__init__(message, expert=expert)
        self.status = status
        self.param = param
