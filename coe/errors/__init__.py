"""One tree of all errors that CoE raises on purpose. `gateway/errors.py` maps the errors of requests to HTTP.

CoEError
├── ConfigError            experts.yaml or the environment is wrong            (stops the process at start)
├── ArtifactError          an artifact is missing, damaged or does not match   (stops the process at start)
├── DataError              a data file cannot be used                          (ends the job)
│   └── DocumentError      one of many files has no usable text                (the job continues)
├── FleetError             a local expert server cannot be run
├── WorkerError            no worker process of the gateway could start
├── LogError               the routing log cannot be read or written
│   ├── DamagedEntry       an entry is neither a record nor a feedback event
│   └── UnknownCursor      the cursor is not of this log
├── RetrievalError         the document store is unavailable, damaged or full
│   └── IndexMismatch      its vectors are from another encoder
├── JobError               another job is running, or has replaced this one
├── ClusterError           Ray is not installed, or no cluster answers
└── RequestError           one request cannot be answered
    ├── InvalidRequest     the client's request is wrong                       400
    │   ├── BodyTooLarge                                                       413
    │   ├── WrongMediaType                                                     415
    │   ├── BodyTooSlow                                                        408
    │   ├── HeadersTooLarge                                                    431
    │   ├── ModelNotFound                                                      404
    │   ├── UnknownRequest       feedback for a request that is not in the log 404
    │   ├── RecordNotFound       the log has no record of the request          404
    │   ├── NotClassified        the request ended before classification       409
    │   ├── DocumentNotFound     no such document, or no document store        404
    │   ├── DocumentsConflict    two documents with the same id in one request 409
    │   ├── ArtifactNotFound     no such kind or version of artifact           404
    │   ├── ArtifactRefused      damaged, or does not match experts.yaml       409
    │   ├── NothingMeasured      the plan was not made from scores             409
    │   ├── Unauthorized         no API key, or an unknown one                 401
    │   ├── Forbidden            the key's scopes do not allow this            403
    │   ├── CrossOriginRequest   a web page of an origin that is not allowed   403
    │   ├── UntrustedHost        a host name that is not allowed               421
    │   └── InvalidHost          no Host header, or several                    400
    ├── Overloaded               no permit became free in time                 429
    ├── BodyMemoryFull           the memory for request bodies is full         503
    ├── LimitReached             a limit of the API key is reached             429
    ├── Draining                 the process is shutting down                  503
    ├── LogUnavailable           feedback cannot be stored now                 503
    ├── DocumentsUnavailable     the document store is unavailable now         503
    ├── JobUnavailable           a job cannot answer now                       503
    ├── NotInstalled             a required package is missing                 501
    ├── DeadlineExceeded         the request's timeout has passed              504
    └── ExpertError              the expert failed; carries `expert`, `cause`
        ├── ExpertUnavailable      connection reset, 5xx, or breaker open      503
        │   ├── ExpertUnreachable  no connection could be opened               503
        │   └── ExpertAsleep       it did not wake on its device in time       503
        ├── OutOfDescriptors       no file descriptor left in this process     503
        ├── ExpertBusy             it answered 429                             429
        ├── ExpertTimeout          no first chunk in time                      504
        ├── ExpertRejected         it answered 4xx: the body is at fault       its 4xx
        └── ExpertInvalidResponse  its response violates the API               502
"""

from __future__ import annotations

from coe.errors.expert import (
    CALLER_INDEPENDENT_CAUSES,
    CAUSES,
    Cause,
    ExpertAsleep,
    ExpertBusy,
    ExpertError,
    ExpertInvalidResponse,
    ExpertRejected,
    ExpertTimeout,
    ExpertUnavailable,
    ExpertUnreachable,
    OutOfDescriptors,
)
from coe.errors.process import (
    ArtifactError,
    ClusterError,
    CoEError,
    ConfigError,
    DamagedEntry,
    DataError,
    DocumentError,
    FleetError,
    IndexMismatch,
    JobError,
    LogError,
    RetrievalError,
    UnknownCursor,
    WorkerError,
)
from coe.errors.request import (
    ArtifactNotFound,
    ArtifactRefused,
    BodyMemoryFull,
    BodyTooLarge,
    BodyTooSlow,
    CrossOriginRequest,
    DeadlineExceeded,
    DocumentNotFound,
    DocumentsConflict,
    DocumentsUnavailable,
    Draining,
    Forbidden,
    HeadersTooLarge,
    InvalidHost,
    InvalidRequest,
    JobUnavailable,
    LimitReached,
    LogUnavailable,
    ModelNotFound,
    NotClassified,
    NothingMeasured,
    NotInstalled,
    Overloaded,
    RecordNotFound,
    RequestError,
    Unauthorized,
    UnknownRequest,
    UntrustedHost,
    WrongMediaType,
)

__all__ = [
    "CALLER_INDEPENDENT_CAUSES",
    "CAUSES",
    "ArtifactError",
    "ArtifactNotFound",
    "ArtifactRefused",
    "BodyMemoryFull",
    "BodyTooLarge",
    "BodyTooSlow",
    "Cause",
    "ClusterError",
    "CoEError",
    "ConfigError",
    "CrossOriginRequest",
    "DamagedEntry",
    "DataError",
    "DeadlineExceeded",
    "DocumentError",
    "DocumentNotFound",
    "DocumentsConflict",
    "DocumentsUnavailable",
    "Draining",
    "ExpertAsleep",
    "ExpertBusy",
    "ExpertError",
    "ExpertInvalidResponse",
    "ExpertRejected",
    "ExpertTimeout",
    "ExpertUnavailable",
    "ExpertUnreachable",
    "FleetError",
    "Forbidden",
    "HeadersTooLarge",
    "IndexMismatch",
    "InvalidHost",
    "InvalidRequest",
    "JobError",
    "JobUnavailable",
    "LimitReached",
    "LogError",
    "LogUnavailable",
    "ModelNotFound",
    "NotClassified",
    "NotInstalled",
    "NothingMeasured",
    "OutOfDescriptors",
    "Overloaded",
    "RecordNotFound",
    "RequestError",
    "RetrievalError",
    "Unauthorized",
    "UnknownCursor",
    "UnknownRequest",
    "UntrustedHost",
    "WorkerError",
    "WrongMediaType",
]
