"""The services of one process of the gateway, which all its requests share and which outlive a reload.

`gateway.main` opens the services in each worker process. `gateway.app` and the endpoints use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coe.experts import ExpertLoader
from coe.records import LogWriter
from coe.records.record import FeedbackLog, RoutingLog
from coe.registry import Registry
from coe.settings import Settings
from gateway.access.issued_keys import IssuedKeyWatch
from gateway.cache import AnswerCache
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracing
from gateway.process.jobs import Jobs
from gateway.request.admission import Admission, AnswerPool
from gateway.request.stored_step import StoredStep
from gateway.request.trace import Trace
from gateway.snapshot import Snapshot

Observer = Callable[[Trace], None]
"""Called with the trace of every finished request; must neither wait nor raise."""


class Reloading(Protocol):
    """Applies changes of experts.yaml and of promoted artifacts (`gateway.process.reload`)."""

    def request(self) -> None:
        """Reload now, even if no file changed."""

    def check(self, registry: Registry) -> None:
        """Raises ConfigError for a declaration that this process cannot take over."""


@dataclass(slots=True, eq=False)
class Services:
    """The services of one process. New requests use `snapshot`; each request reads it once.

    `tracing` is None without a collector, `cache` and `stored` if none is declared, `reload` in tests
    without them, `residency` if no experts share a device.
    """

    snapshot: Snapshot
    observers: Sequence[Observer]
    metrics: Metrics
    log: RoutingLog
    feedback: FeedbackLog
    writer: LogWriter
    settings: Settings
    jobs: Jobs
    issued: IssuedKeyWatch
    tracing: Tracing | None = None
    cache: AnswerCache | None = None
    stored: StoredStep | None = None
    residency: ExpertLoader | None = None
    reload: Reloading | None = None
    admission: Admission = field(init=False)
    answers: AnswerPool = field(default_factory=AnswerPool)
    """The memory for answers."""
    leaving: bool = False
    """True if the process is shutting down, so that no load balancer should send it requests."""
    reload_error: str | None = None
    """Cause of the latest failed reload; the last good snapshot stays in service."""

    def __post_init__(self) -> None:
        self.admission = Admission(self.snapshot.registry.limits)

    def replace(self, snapshot: Snapshot) -> None:
        """Serve new requests with this snapshot; requests in progress keep theirs."""
        self.snapshot = snapshot
        self.admission.limits = snapshot.registry.limits
        self.admission.grant()
