"""What is told of every finished request, opened together: metrics, traces, the access log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from coe.settings import Settings
from gateway.logs import log_request
from gateway.metrics import Metrics
from gateway.trace import Trace
from gateway.tracing import Tracing, open_tracing
from gateway.workers import among_workers


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
