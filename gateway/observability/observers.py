"""What is told of every finished request, opened together: metrics, traces, the access log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from coe.settings import Settings
from gateway.observability.logs import log_request
from gateway.observability.metric_workers import among_workers
from gateway.observability.metrics import Metrics
from gateway.observability.tracing import Tracing, open_tracing
from gateway.request.trace import Trace


@dataclass(frozen=True, slots=True)
class Observation:
    """`observers` are for the line; `tracing`, None where no collector is declared, wants to be asked before it."""

    metrics: Metrics
    tracing: Tracing | None
    observers: tuple[Callable[[Trace], None], ...]


@asynccontextmanager
async def open_observation(settings: Settings, workers: Path | None) -> AsyncIterator[Observation]:
    """`workers` is the folder that several worker processes share. Raises ConfigError where traces cannot be sent."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        if workers is not None:
            metrics.siblings = await stack.enter_async_context(among_workers(workers, metrics.tallies))
        tracing = await stack.enter_async_context(open_tracing(settings))
        observers: list[Callable[[Trace], None]] = [metrics.observe]
        if tracing is not None:
            observers.append(tracing.observe)
        if settings.access_log:
            observers.append(log_request)
        yield Observation(metrics, tracing, tuple(observers))
