"""Every error CoE raises on purpose, as one tree; `gateway/errors.py` holds the one table from here to HTTP.

CoEError
├── ConfigError            experts.yaml or the environment is wrong        (stops the process at start)
├── ArtifactError          an artifact is missing, damaged or does not fit (stops the process at start)
├── DataError              a data file cannot be used                      (ends the job)
│   └── DocumentError      one of many files has no text that can be used  (the job goes on)
├── FleetError             a local expert server cannot be run
├── WorkerError            no worker process of the gateway could start
├── LogError               the routing log cannot be read or written
│   ├── DamagedEntry       what stands there is no record and no event of feedback
│   └── UnknownCursor      no place in this log
├── RetrievalError         the document store is away, damaged or full
│   └── IndexMismatch      another encoder made its vectors
├── JobError               another job is at work, or took this one's place
├── ClusterError           there is no Ray, or no cluster answers
└── RequestError           one request cannot be answered
    ├── InvalidRequest     the client's request is wrong                   400
    │   ├── BodyTooLarge                                                   413
    │   ├── WrongMediaType                                                 415
    │   ├── BodyTooSlow                                                    408
    │   ├── HeadersTooLarge                                                431
    │   ├── ModelNotFound                                                  404
    │   ├── UnknownRequest feedback for a request that is not in the log   404
    │   ├── RecordNotFound the log has no record of a request               404
    │   ├── NotClassified  the request ended before it had a category       409
    │   ├── DocumentNotFound   no such document, or no store of any         404
    │   ├── DocumentsConflict  one id twice in a request                    409
    │   ├── ArtifactNotFound   no such kind or version of artifact          404
    │   ├── ArtifactRefused    damaged, or it does not fit experts.yaml     409
    │   ├── NothingMeasured    no plan was made of scores                   409
    │   ├── Unauthorized   no API key, or one that is not known            401
    │   ├── Forbidden      the key's scopes do not cover this              403
    │   ├── CrossOriginRequest  a web page of an origin that is not allowed 403
    │   ├── UntrustedHost  a host name that is not allowed                 421
    │   └── InvalidHost    no Host header, or several                      400
    ├── Overloaded         no permit free in time                          429
    ├── BodyMemoryFull     other requests' bodies hold the memory           503
    ├── LimitReached       what the API key may use is used up             429
    ├── Draining           the process is about to end                     503
    ├── LogUnavailable     feedback cannot be kept now                     503
    ├── DocumentsUnavailable   the document store does not do it now       503
    ├── JobUnavailable     a job beside the gateway cannot answer now  503
    ├── NotInstalled       the job needs a package that is not there   501
    ├── DeadlineExceeded   the request's own time is over                  504
    └── ExpertError        the expert's fault; carries `expert`
        ├── ExpertUnavailable  reset, answered 5xx; breaker open           503
        │   ├── ExpertUnreachable  no connection came about                503
        │   └── ExpertAsleep       it did not get its turn on a device     503
        ├── OutOfDescriptors   none left here for a connection to it       503
        ├── ExpertBusy         answered 429                                429
        ├── ExpertTimeout      no first piece in time                      504
        ├── ExpertRejected     answered 4xx: the client's body is at fault 4xx as given
        └── ExpertGarbage      answered something that is not the protocol 502
"""

from __future__ import annotations

from coe.errors.cause import CAUSES, FOR_ALL_CALLERS, Cause
from coe.errors.expert import (
    ExpertAsleep,
    ExpertBusy,
    ExpertError,
    ExpertGarbage,
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
    "CAUSES",
    "FOR_ALL_CALLERS",
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
    "ExpertGarbage",
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
