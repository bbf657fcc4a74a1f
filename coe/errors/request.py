"""Why one request cannot be answered."""

from __future__ import annotations

from coe.errors.process import CoEError


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


class RecordNotFound(InvalidRequest):
    """The routing log has no record of that request."""

    code = "record_not_found"


class NotClassified(InvalidRequest):
    """The request ended before it had a category, so there is nothing to decide again."""

    code = "not_classified"


class DocumentNotFound(InvalidRequest):
    """The document store holds no such document, or none is declared."""

    code = "document_not_found"


class DocumentsConflict(InvalidRequest):
    """One request holds two documents of the same id."""

    code = "duplicate_id"


class ArtifactNotFound(InvalidRequest):
    """No artifact of this kind, or none of this version, is published."""

    code = "artifact_not_found"


class ArtifactRefused(InvalidRequest):
    """The version is damaged, or a gateway with this experts.yaml would not serve with it; or there is none to go back
    to."""

    code = "artifact_refused"


class NothingMeasured(InvalidRequest):
    """The assignment in use was declared, not planned on scores, or nobody kept what it was planned on."""

    code = "nothing_measured"


class HeadersTooLarge(InvalidRequest):
    """The headers together are longer than any client needs."""

    code = "headers_too_large"


class Unauthorized(InvalidRequest):
    """No API key came with the request, or one that is not known."""

    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    """The API key is known and may not do this."""

    code = "insufficient_scope"


class CrossOriginRequest(InvalidRequest):
    """A web page of another origin sent the request, and that origin is not allowed."""

    code = "cross_origin_request"


class UntrustedHost(InvalidRequest):
    """The request addresses the gateway by a host name that is not allowed."""

    code = "untrusted_host"


class InvalidHost(InvalidRequest):
    """The request has no Host header, or more than one."""

    code = "invalid_host"


class _Later(RequestError):
    """Something is used up for now. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(_Later):
    """No permit came free in time, or there was no place to wait for one; or too many bodies are still arriving."""

    code = "overloaded"


class BodyMemoryFull(_Later):
    """The large bodies of other requests hold the memory that is meant for them."""

    code = "body_memory_full"


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


class JobUnavailable(_Later):
    """A job beside the gateway failed, took too long, or was asked something newer meanwhile."""

    code = "job_unavailable"


class NotInstalled(RequestError):
    """What the request takes is not installed where the gateway runs."""

    code = "not_installed"


class DeadlineExceeded(RequestError):
    """The time the request had is over."""

    code = "deadline_exceeded"
