"""Opens the observers of finished requests: metrics, traces and the access log; and the Recorder for the routing
log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from coe.core import Encoder
from coe.records import RecordWriter
from coe.records.record import RoutingRecord
from coe.settings import Settings
from gateway.observability.logs import log_request
from gateway.observability.metric_workers import share_metrics
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracing, open_tracing
from gateway.request.trace import Trace


@dataclass(frozen=True, slots=True)
class Observability:
    """`observers` are called with every finished request. `tracing` also prepares requests; None if no collector is
    declared."""

    metrics: Metrics
    tracing: Tracing | None
    observers: tuple[Callable[[Trace], None], ...]


@asynccontextmanager
async def open_observability(settings: Settings, workers: Path | None) -> AsyncIterator[Observability]:
    """`workers` is the folder that several worker processes share, None for one process. Raises ConfigError if traces
    cannot be sent."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        if workers is not None:
            metrics.siblings = await stack.enter_async_context(share_metrics(workers, metrics.registry))
        tracing = await stack.enter_async_context(open_tracing(settings))
        observers: list[Callable[[Trace], None]] = [metrics.observe]
        if tracing is not None:
            observers.append(tracing.observe)
        if settings.access_log:
            observers.append(log_request)
        yield Observability(metrics, tracing, tuple(observers))


_log = logging.getLogger("gateway")

MAX_PENDING_EMBEDDINGS = 256
"""Embeddings being computed at a time; further records are written without one."""


class Recorder:
    """Hands the record of each finished request to the log's writer. It never waits and never raises; embeddings are
    computed after the answer, in a thread."""

    def __init__(self, writer: RecordWriter, *, encoder: Encoder | None, threads: Executor) -> None:
        self._writer = writer
        self._encoder = encoder
        self._threads = threads
        self._pending: set[asyncio.Future[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await asyncio.gather(*self._pending, return_exceptions=True)

    def observe(self, trace: Trace) -> None:
        """Queues the record of a routed request. A request that failed before routing has no record, only metrics and
        an access line: otherwise strangers could push real records out of the log."""
        if trace.decision is None:
            return
        record, text = trace.record(), trace.text
        if self._encoder is None or not text or len(self._pending) >= MAX_PENDING_EMBEDDINGS:
            self._writer.put(record)
            return
        task = asyncio.ensure_future(self._embed(self._encoder, record, text))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _embed(self, encoder: Encoder, record: RoutingRecord, text: str) -> None:
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(self._threads, encoder.encode, [text])
            record = replace(record, embedding=vectors[0].astype(np.float16).tobytes())
        except Exception:  # a record without its embedding is still useful
            _log.exception("record %s goes without its embedding", record.request_id)
        self._writer.put(record)
