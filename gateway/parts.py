"""The parts of an application: serving state, observers, metrics, logs, settings and jobs, in one value.

`gateway.main` opens them in each worker process. `gateway.app` and the endpoints use them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coe.experts import ExpertLoader
from coe.experts.http.client import Client
from coe.records import LogWriter
from coe.records.feedback import FeedbackLog
from coe.records.record import RoutingLog
from coe.settings import Settings
from gateway.access import IssuedKeyWatch
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracing
from gateway.process.jobs import Jobs
from gateway.process.reload import Reload
from gateway.request.cache_step import CacheStep
from gateway.request.line import Observer
from gateway.request.stored_step import StoredStep
from gateway.serving_state import ServingState


@dataclass(frozen=True, slots=True)
class Parts:
    """The opened parts of one application. `tracing` is None without a collector, `cache` and `stored` if none is
    declared, `reload`, `issued` and `session` in tests without them, `residency` if no experts share a device."""

    current: ServingState
    observers: Sequence[Observer]
    metrics: Metrics
    log: RoutingLog
    feedback: FeedbackLog
    writer: LogWriter
    settings: Settings
    jobs: Jobs
    solver: Jobs
    tracing: Tracing | None = None
    cache: CacheStep | None = None
    stored: StoredStep | None = None
    reload: Reload | None = None
    residency: ExpertLoader | None = None
    issued: IssuedKeyWatch | None = None
    session: Client | None = None
