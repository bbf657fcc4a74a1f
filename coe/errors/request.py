"""Errors of single requests: the client is at fault, or a resource is unavailable for now."""

from __future__ import annotations

from coe.errors.process import CoEError


class RequestError(CoEError):
    """One request cannot be answered; the process is healthy.

    `code` and `param` (the body field at fault) go into OpenAI's error body. `retry_after` is the number of seconds
    after which a retry may succeed, None if unknown.
    """

    code = "internal_error"
    param: str | None = None
    retry_after: float | None = None


class InvalidRequest(RequestError):
    """The client's request is wrong; an unchanged retry fails too."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code:
            self.code = code


class BodyTooLarge(InvalidRequest):
    """The body exceeds the declared limit."""

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
    """Feedback for a request that is not in the routing log, or belongs to another tenant."""

    code = "feedback_unknown_request"


class RecordNotFound(InvalidRequest):
    """The routing log has no record of that request."""

    code = "record_not_found"


class NotClassified(InvalidRequest):
    """The request ended before classification, so its decision cannot be replayed."""

    code = "not_classified"


class DocumentNotFound(InvalidRequest):
    """The document store holds no such document, or none is declared."""

    code = "document_not_found"


class DocumentsConflict(InvalidRequest):
    """One request holds two documents with the same id."""

    code = "duplicate_id"


class ArtifactNotFound(InvalidRequest):
    """No artifact of this kind, or none of this version, is published."""

    code = "artifact_not_found"


class ArtifactRefused(InvalidRequest):
    """The version is damaged or does not match experts.yaml, or there is no version to roll back to."""

    code = "artifact_refused"


class NothingMeasured(InvalidRequest):
    """The assignment in use was declared, not planned from scores, or the record of its scores is missing."""

    code = "nothing_measured"


class HeadersTooLarge(InvalidRequest):
    """The headers exceed the size limit."""

    code = "headers_too_large"


class Unauthorized(InvalidRequest):
    """The request has no API key, or an unknown one."""

    code = "invalid_api_key"


class Forbidden(InvalidRequest):
    """The scopes of the API key do not allow this."""

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


class _Temporary(RequestError):
    """A resource is unavailable for now. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(_Temporary):
    """No permit became free in time, the queue for permits is full, or too many bodies are still arriving."""

    code = "overloaded"


class BodyMemoryFull(_Temporary):
    """The memory for large request bodies is in use by other requests."""

    code = "body_memory_full"


class LimitReached(_Temporary):
    """The API key has reached its limit for this minute, day or month."""

    code = "rate_limit_exceeded"


class Draining(_Temporary):
    """The process is shutting down: it finishes its requests and accepts no new ones."""

    code = "draining"


class LogUnavailable(_Temporary):
    """The routing log cannot look up a request or store feedback now."""

    code = "log_unavailable"


class DocumentsUnavailable(_Temporary):
    """The document store is unavailable or too slow, or was built with another encoder."""

    code = "documents_unavailable"


class JobUnavailable(_Temporary):
    """A job of the gateway failed, timed out, or was superseded by a newer request."""

    code = "job_unavailable"


class NotInstalled(RequestError):
    """A package that the request needs is not installed on the gateway."""

    code = "not_installed"


class DeadlineExceeded(RequestError):
    """The request's timeout has passed."""

    code = "deadline_exceeded"
