"""The errors that end a command or a request, and the causes why an expert did not answer.

CoEError
├── errors that end a process or a job (ConfigError, ArtifactError, ...)
└── RequestError           one request cannot be answered; has its HTTP status
    ├── InvalidRequest     the client's request is wrong                     4xx
    ├── _Temporary         a resource is unavailable for now                 429, 503
    └── ExpertError        the expert failed; carries `expert` and `cause`   its class decides about retry and breaker
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

DISTRIBUTION = "composition-of-experts"
"""Name on the package index, where `coe` is another project."""


def pip_install(extra: str) -> str:
    """Return the command that installs CoE with the packages of `extra`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


_EXTRAS = dict.fromkeys(("onnx", "onnx_ir", "onnxscript", "sentence_transformers", "sklearn", "torch"), "train")
_EXTRAS |= dict.fromkeys(("pyarrow", "scipy"), "plan")


def missing_package(error: ModuleNotFoundError) -> str | None:
    """Return the message for a missing package of the extras `plan` and `train`; None for another one, a defect."""
    name = (error.name or "").partition(".")[0]
    return f"this needs {name}; run `{pip_install(_EXTRAS[name])}`" if name in _EXTRAS else None


class CoEError(Exception):
    """Base of all errors raised on purpose. The message names the place, the problem and the remedy."""

    def drop_frames(self) -> None:
        """Release the traceback. A frame that refers to the error forms a cycle with it, which would keep a request's
        body in memory until the garbage collector runs."""
        self.__traceback__ = self.__cause__ = self.__context__ = None


class ConfigError(CoEError):
    """A setting is wrong. `problems` holds one line per problem, each `file:line: problem`."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ArtifactError(CoEError):
    """An artifact is missing, damaged, or was made for other categories than the declared ones."""


class DataError(CoEError):
    """A data file is missing, unreadable, or lacks what the job needs."""


class DocumentError(DataError):
    """A file to be indexed is refused, damaged or without text. The message gives the reason, not the file name."""


class FleetError(CoEError):
    """A local expert server could not be started or kept running."""


class WorkerError(CoEError):
    """No worker process of the gateway could start."""


class StoreError(CoEError):
    """The routing log, the issued keys or another such store could not be opened, read or written."""


class DamagedEntry(StoreError):
    """An entry of the log is not a valid record or feedback event."""


class UnknownCursor(StoreError):
    """The cursor was not issued by this log."""


class RetrievalError(CoEError):
    """The document store could not be opened, read or written."""


class IndexMismatch(RetrievalError):
    """The vectors in the document store are from another encoder and cannot be compared with queries."""


class ClusterError(CoEError):
    """Ray is not installed, or no cluster answers at the address."""


class JobError(CoEError):
    """A job that must be the only one of its kind has lost its lock, or another job holds it."""


class RequestError(CoEError):
    """One request cannot be answered; the process is healthy.

    `status` is that of the HTTP response. `code` and `param` (the body field at fault) go into OpenAI's error body.
    `retry_after` is the number of seconds after which a retry may succeed, None if unknown.
    """

    status = 500
    code = "internal_error"
    param: str | None = None
    retry_after: float | None = None

    def __init_subclass__(cls, *, code: str = "", status: int = 0) -> None:
        cls.code = code or cls.code
        cls.status = status or cls.status


class InvalidRequest(RequestError, code="invalid_request", status=400):
    """The client's request is wrong; an unchanged retry fails too."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code:
            self.code = code


class ThreadUnsupported(InvalidRequest, code="thread_unsupported_request"):
    """A Messages request whose conversation a server would store. Clients then send it whole."""


class BodyTooLarge(InvalidRequest, code="body_too_large", status=413):
    """The body exceeds the declared limit."""


class BodyTooSlow(InvalidRequest, code="request_timeout", status=408):
    """The body did not arrive in time."""


class WrongMediaType(InvalidRequest, code="unsupported_media_type", status=415):
    """The body is not declared as JSON."""


class ModelNotFound(InvalidRequest, code="model_not_found", status=404):
    """`model` is neither `auto` nor a declared expert or recipe, or x-coe-recipe names no declared recipe."""


class UnknownRequest(InvalidRequest, code="feedback_unknown_request", status=404):
    """Feedback for a request that is not in the routing log, or belongs to another tenant."""


class RecordNotFound(InvalidRequest, code="record_not_found", status=404):
    """The routing log has no record of that request."""


class ResponseNotFound(InvalidRequest, code="response_not_found", status=404):
    """No answer of this id is stored for the tenant or API key."""


class DocumentNotFound(InvalidRequest, code="document_not_found", status=404):
    """The document store holds no such document, or none is declared."""


class DocumentsConflict(InvalidRequest, code="duplicate_id", status=409):
    """One request holds two documents with the same id."""


class ArtifactNotFound(InvalidRequest, code="artifact_not_found", status=404):
    """No artifact of this kind, or none of this version, is published."""


class ArtifactRefused(InvalidRequest, code="artifact_refused", status=409):
    """The version is damaged or does not match experts.yaml, or there is no version to roll back to."""


class ConfigRefused(InvalidRequest, code="config_refused", status=409):
    """experts.yaml cannot be shown; the message has the reason."""


class KeyNotFound(InvalidRequest, code="key_not_found", status=404):
    """No API key of that name was issued."""


class KeyRefused(InvalidRequest, code="key_refused", status=409):
    """An API key cannot be issued or revoked; the message has the reason and the remedy."""


class InvalidHttp(InvalidRequest, code="invalid_http"):
    """The bytes are not a valid HTTP/1.1 request."""


class HeadersTooLarge(InvalidRequest, code="headers_too_large", status=431):
    """The headers exceed the size limit."""


class Unauthorized(InvalidRequest, code="invalid_api_key", status=401):
    """The request has no API key, or an unknown one."""


class Forbidden(InvalidRequest, code="insufficient_scope", status=403):
    """The API key, or the header x-coe-only-local, does not allow this: scope, expert or locality."""


class CrossOriginRequest(InvalidRequest, code="cross_origin_request", status=403):
    """A web page of another origin sent the request, and that origin is not allowed."""


class UntrustedHost(InvalidRequest, code="untrusted_host", status=421):
    """The request addresses the gateway by a host name that is not allowed."""


class InvalidHost(InvalidRequest, code="invalid_host"):
    """The request has no Host header, or more than one."""


class _Temporary(RequestError):
    """A resource is unavailable for now. `retry_after` is in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(_Temporary, code="overloaded", status=429):
    """No permit became free in time, the queue for permits is full, or too many connections or arriving bodies are
    open."""


class BodyMemoryFull(_Temporary, code="body_memory_full", status=503):
    """The memory for large request bodies is in use by other requests."""


class LimitReached(_Temporary, code="rate_limit_exceeded", status=429):
    """The API key has reached its limit for this minute, day or month."""


class Draining(_Temporary, code="draining", status=503):
    """The process is shutting down: it finishes its requests and accepts no new ones."""


class LogUnavailable(_Temporary, code="log_unavailable", status=503):
    """The routing log cannot look up a request or store feedback now."""


class ResponsesUnavailable(_Temporary, code="responses_unavailable", status=503):
    """The store of earlier answers, to which the request refers, does not reply."""


class DocumentsUnavailable(_Temporary, code="documents_unavailable", status=503):
    """The document store is unavailable or too slow, or was built with another encoder."""


class KeysUnavailable(_Temporary, code="keys_unavailable", status=503):
    """The store of issued API keys cannot be read or written now."""


class JobUnavailable(_Temporary, code="job_unavailable", status=503):
    """A job of the gateway failed, timed out, or had to wait behind too many others."""


class NotInstalled(RequestError, code="not_installed", status=501):
    """A package or a store that the request needs is not available on the gateway."""


class DeadlineExceeded(RequestError, code="deadline_exceeded", status=504):
    """The request's timeout has passed."""


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
    "circuit_open",
    "gateway_limit",
    "error",
]
"""docs/concepts/failure-handling.md describes each. `circuit_open` is an open breaker of unknown cause,
`error` any other failure."""
CAUSES: tuple[Cause, ...] = get_args(Cause)

UNBILLED_CAUSES: frozenset[Cause] = frozenset(
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
"""Causes for which no server bills a request: no connection, or a rejected account."""


class ExpertError(RequestError, code="expert_error", status=502):
    """An expert failed the request.

    `retryable`: another expert may be tried. `request_sent`: the request was sent to this expert. `refused`: its server
    answered that it did not process the request, so it bills nothing. `unhealthy`: the failure counts against the
    server's circuit breaker. `may_be_forced`: nothing but its breaker kept the request from it. `cause` is one word of
    a closed vocabulary. `detail` adds facts for logs; it holds neither secrets nor text of the server, which may quote
    a request.
    """

    retryable = True
    request_sent = True
    refused = False
    unhealthy = True
    may_be_forced = False
    cause: Cause = "error"
    detail = ""

    def __init__(self, message: str, *, expert: str) -> None:
        super().__init__(message)
        self.expert = expert

    @property
    def may_be_billed(self) -> bool:
        """True if the request reached the server, and it did not refuse it."""
        return self.request_sent and not self.refused and self.cause not in UNBILLED_CAUSES


class ExpertUnavailable(ExpertError, code="expert_unavailable", status=503):
    """The expert refused or dropped the connection, answered 5xx before the first chunk, or its circuit breaker is
    open.

    `unavailable_servers`: addresses that the same request must not try again.
    """

    unavailable_servers: frozenset[str] = frozenset()


class ExpertUnreachable(ExpertUnavailable):
    """No connection could be opened, so the expert never received the request."""

    cause: Cause = "unreachable"


class ExpertAsleep(ExpertUnavailable, code="expert_asleep"):
    """The expert shares a device and did not wake in time, so it never received the request."""

    cause: Cause = "asleep"
    request_sent = False
    unhealthy = False


class AnswerMemoryFull(ExpertError, code="answer_memory_full", status=503):
    """The memory for answers that are held whole is in use. The expert is healthy; no other expert can help."""

    cause: Cause = "gateway_limit"
    retryable = False
    unhealthy = False


class ExpertBusy(ExpertError, code="expert_busy", status=429):
    """The expert answered 429 before the first chunk."""

    cause: Cause = "rate_limited"
    refused = True
    unhealthy = False


class ExpertTimeout(ExpertError, code="expert_timeout", status=504):
    """The expert sent no first chunk within its timeout."""

    cause: Cause = "timeout"


class ExpertInvalidResponse(ExpertError, code="expert_invalid_response"):
    """The expert answered 200 with a body that violates the API."""

    cause: Cause = "invalid_response"


class ExpertRejected(ExpertError, code="expert_rejected", status=400):
    """The expert rejected the request itself (4xx). Others would too, so no other expert is tried.

    `status` is its HTTP status, `upstream_code` its own error code, such as context_length_exceeded, and `param` the
    body field at fault.
    """

    cause: Cause = "rejected"
    refused = True
    retryable = False
    unhealthy = False

    def __init__(
        self, message: str, *, expert: str, status: int, param: str | None = None, upstream_code: str | None = None
    ) -> None:
        super().__init__(message, expert=expert)
        self.status = status
        self.param = param
        self.upstream_code = upstream_code


REMEDIES: Mapping[Cause, tuple[str, str]] = {
    "connection_refused": ("nothing listens at its address", "start the server, or correct `base_url` in experts.yaml"),
    "connect_timeout": ("its address accepts no connection in time", "check `base_url`, the firewall and the network"),
    "name_resolution": ("its host name does not resolve", "correct the host of `base_url`, or this machine's DNS"),
    "tls_error": ("no TLS connection came about", "write http:// for plain HTTP, or make its certificate valid here"),
    "unreachable": ("its address cannot be reached", "check `base_url` and the network to it"),
    "connection_lost": ("it broke off the connection", "read the server's own log; write https:// if it speaks TLS"),
    "unauthorized": ("it refuses the api_key", "set the `api_key` of the expert to one that is valid there"),
    "forbidden": ("it forbids the request", "check the rights of its `api_key`, and the provider's content policy"),
    "model_not_found": ("it does not serve the declared model", "correct `model` to a name at its /v1/models"),
    "not_found": ("its address has no such API", "let `base_url` end where the API begins, as a rule in /v1"),
    "rate_limited": ("its rate limit is reached", "lower the traffic to it, or ask the provider for a higher limit"),
    "quota_exceeded": ("the quota or credit of its account is used up", "raise the quota or pay at the provider"),
    "overloaded": ("the server is overloaded or still starting", "add replicas, or wait until it has started"),
    "server_error": ("the server answers with an error", "read the server's own log"),
    "unexpected_status": ("its status code is none of the API", "check that `base_url` is the API itself, not a page"),
    "timeout": ("it does not answer in time", "check its load, or raise `first_token_timeout` and `response_timeout`"),
    "invalid_response": ("its response does not match the API", "check that `base_url` leads to one of the `apis`"),
    "rejected": ("it rejects the request", "check the `parameters` of the expert"),
    "unsupported": ("it does not speak the API of the request", "declare the `apis` that the server speaks"),
    "asleep": ("it shares a device and was not loaded in time", "see `residency` in experts.yaml"),
    "gateway_limit": ("the gateway has no memory left for answers", "raise `limits.body_memory_mb`"),
    "circuit_open": ("it failed too often lately", "see the causes in the log of the gateway"),
    "error": ("it fails", "read the server's own log"),
}
"""Maps each cause to what is wrong (a phrase that completes a sentence) and the remedy."""
