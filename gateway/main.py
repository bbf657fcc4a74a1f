"""The gateway's composition root: checks the settings, opens the services of a worker process, and serves.

`serve` runs the gateway; it starts worker processes (`gateway/process/`), each of which calls `build_app`.
`open_services` opens threads, connections and logs in order and closes them in reverse.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.applications import Starlette

from coe.artifacts.active_state import (
    ActiveState,
    LoadedRouter,
    check_active_state,
    load_active_state,
    preload_router,
)
from coe.artifacts.api_keys import create_admin_key
from coe.artifacts.artifact_sync import sync_artifacts, sync_once
from coe.artifacts.consequences import consequences_of, log_consequences
from coe.artifacts.kinds import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.artifacts.traffic_report import TRAFFIC_REPORT_FILE
from coe.errors import CoEError, ConfigError
from coe.experts import ReplicatedExpert, endpoints_of, reading_queues
from coe.experts.http.client import Client
from coe.experts.live_check import check_experts, log_findings
from coe.records import LogWriter, open_log_and_feedback
from coe.records.feedback import FeedbackLog
from coe.records.record import RoutingLog
from coe.registry import Registry
from coe.settings import Settings
from gateway.access.access import open_affinity
from gateway.access.browsers import check_exposure
from gateway.access.issued_keys import KEYS_FILE, IssuedKeyWatch, check_issued, open_key_store
from gateway.access.limits import Limiter
from gateway.app import create_app
from gateway.cache.step import cache_store, open_cache
from gateway.observability.logs import log_uncaught
from gateway.observability.metrics import Metrics
from gateway.observability.observers import ImplicitSignals, Recorder, open_observability
from gateway.observability.state_metrics import add_log_metrics, add_traffic_metrics, open_residency
from gateway.observability.tracing import check_tracing
from gateway.process.jobs import Jobs
from gateway.process.reload import Reader, Reload, file_states, watched_files
from gateway.process.signals import Drain, handle_signals
from gateway.request.stored_step import open_stored_step, response_store
from gateway.server import open_listener
from gateway.services import Services
from gateway.shared_store import open_store
from gateway.snapshot import SnapshotBuilder
from routers.kernel import IMPLEMENTATION

_log = logging.getLogger("gateway")

SPOOL = "spool.jsonl"
ENCODER_THREADS = 2
"""Threads for sentence encoder passes, each on one core; more would compete with the experts for the cores."""
CACHE_DEGRADED = "1 while the store of the cache is away and nothing is answered from it."
STORED_DEGRADED = "1 while answers of the Responses API cannot be stored or read."
LIMITS_DEGRADED = "1 while Redis or the file of counts is away and this gateway counts limits for itself."
ISSUED_KEYS_DEGRADED = "1 while issued API keys cannot be read; they are refused after 5 minutes."
ARTIFACTS_BEHIND = "1 while this gateway cannot load the shared artifacts in use."


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError, ArtifactError or WorkerError if the start fails."""
    from gateway.process import processes

    if (created := create_admin_key(settings)) is not None:
        _log.warning(created)
    registry = prepare(settings)
    log_uncaught()
    with (
        open_port(settings, registry) as listener,  # before anything is loaded: a port in use is reported at once
        workers_folder(settings.workers) as workers,
    ):
        router = PreloadedRouter(settings) if workers_share_memory(settings) else None
        build = partial(build_app, settings, workers, router)
        at_intervals = router.release_if_replaced if router else None
        processes.serve(build, settings, listener=listener, at_intervals=at_intervals)


def workers_share_memory(settings: Settings) -> bool:
    """True if several workers are forked, so that pages which no process writes exist once."""
    from gateway.process.processes import SHARES_MEMORY

    return settings.workers > 1 and SHARES_MEMORY


class PreloadedRouter:
    """The router that the parent process loads for its workers before it forks them.

    Each process releases its copy when another router or declaration is in use. The memory is free once all have.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError or ArtifactError with the remedy."""
        self._settings = settings
        self._artifacts = ArtifactStore(settings.artifacts, ROUTER)
        self._config = settings.config
        self._source = self._current_source()
        self.loaded: LoadedRouter | None = preload_router(settings)
        gc.freeze()  # collections in the workers leave the objects of this process alone, so their pages stay shared

    def read(self, settings: Settings, previous: ActiveState | None) -> ActiveState:
        """A Reader for a worker process, which uses the router while it is in use."""
        state = load_active_state(settings, previous, preloaded=self.loaded)
        if self.loaded is not None and state.router is not self.loaded.router:
            self.loaded = None
        return state

    def release_if_replaced(self) -> None:
        """Release it in the parent process, which reads no state."""
        with suppress(OSError, CoEError):  # also a file that is being replaced: the next check decides
            if self.loaded is not None and self._current_source() != self._source:
                self.loaded = None

    def _current_source(self) -> tuple[str | None, int]:
        """The version in use, and the time of the declaration, to whose categories the router is adapted."""
        return self._artifacts.in_use(), self._config.stat().st_mtime_ns


def prepare(settings: Settings) -> Registry:
    """Check everything that serving needs before a port is opened. Raises ConfigError or ArtifactError."""
    sync_once(settings)
    registry, _ = check_active_state(settings)
    check_exposure(settings, registry.access)
    open_key_store(registry.access.counters, home=settings.home)
    if registry.cache is not None:
        cache_store(registry.cache)
    response_store(registry.stored_responses, settings.home)
    for spec in registry.experts:
        endpoints_of(spec, settings.endpoints)
    check_tracing(settings)
    log_consequences(consequences_of(settings, registry))
    return registry


def open_port(settings: Settings, registry: Registry) -> socket.socket:
    """Open the socket that the workers accept connections from. Raises ConfigError."""
    where = f"{settings.host}:{settings.port}"
    try:
        return open_listener(settings.host, settings.port, stalled_after=registry.policy.stream_idle_timeout)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use; stop what listens there or set COE_PORT") from None
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}; set COE_HOST and COE_PORT") from None


@contextmanager
def workers_folder(count: int) -> Iterator[Path | None]:
    """A folder for the sockets through which workers exchange metrics; None for a single worker."""
    if count == 1:
        yield None
    else:
        with TemporaryDirectory(prefix="coe-") as folder:  # short, because paths of sockets must be
            yield Path(folder)


def build_app(
    settings: Settings, workers: Path | None = None, router: PreloadedRouter | None = None, number: int = 0
) -> Starlette:
    """The application of the worker process of that number. `workers` is the folder of `workers_folder`."""
    read, own = router.read if router else load_active_state, workers / str(number) if workers else None
    return create_app(partial(open_worker, settings, workers=own, read=read, check=settings.check_experts))


@asynccontextmanager
async def open_worker(
    settings: Settings,
    *,
    workers: Path | None = None,
    read: Reader = load_active_state,
    check: bool = False,
) -> AsyncIterator[Services]:
    """The services of a worker process, which handles its parent's signals, and computes matrix products in the calling
    thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):  # OpenBLAS's own threads busy-wait for milliseconds after a product
        async with open_services(settings, workers=workers, read=read, check=check) as services:
            assert services.reload is not None
            drain = Drain(services, lame_duck=settings.drain)
            async with handle_signals(drain=drain.begin, reload=services.reload.request, abort=drain.abort):
                gc.freeze()  # full collections would visit all loaded objects while every request waits
                gc.set_threshold(20_000)  # at the default of 700 collections take some 3 % of the processor time
                yield services


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    workers: Path | None = None,
    read: Reader = load_active_state,
    check: bool = False,
) -> AsyncIterator[Services]:
    """Open the services of a process and close them in reverse order. `read` returns what is in use, now and for every
    reload. With `check`, the first worker checks the experts in the background.

    Raises ConfigError or ArtifactError.
    """
    states = file_states(watched_files(settings))
    in_use = read(settings, None)
    registry = in_use.registry
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        threads = stack.enter_context(ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encoder"))
        observation = await enter(open_observability(settings, workers))
        metrics, failed = observation.metrics, observation.metrics.task_failed
        session = await enter(Client())
        log, feedback, writer = await _open_logs(stack, settings, registry, metrics)
        recorder = Recorder(writer)
        builder = await _open_builder(stack, settings, registry, session, threads, metrics)
        behind = await enter(sync_artifacts(settings, registry.artifacts, task_failed=failed))
        cache = await enter(open_cache(registry.cache))
        stored = await enter(open_stored_step(registry.stored_responses, settings.home, count=metrics.record_unstored))
        for name, text, is_degraded in (
            ("coe_artifacts_behind", ARTIFACTS_BEHIND, behind),
            ("coe_cache_degraded", CACHE_DEGRADED, lambda: cache is not None and cache.answers.outage.active),
            ("coe_stored_responses_degraded", STORED_DEGRADED, lambda: stored is not None and stored.outage.active),
        ):
            metrics.gauge(name, text, is_degraded, largest=True)
        signals = ImplicitSignals(writer.put)
        services = Services(
            builder.build(in_use),
            observers=(recorder.observe, signals.observe, *observation.observers),
            metrics=metrics,
            log=log,
            feedback=feedback,
            writer=writer,
            settings=settings,
            jobs=await enter(Jobs(settings)),
            solver=await enter(Jobs(settings)),
            tracing=observation.tracing,
            cache=cache,
            stored=stored,
            residency=builder.residency,
            issued=builder.issued,
            session=session,
        )
        builder.issued.on_change = lambda: services.replace(builder.with_issued(services.snapshot))
        await services.snapshot.composition.warm()
        add_traffic_metrics(metrics, settings.artifacts / TRAFFIC_REPORT_FILE, services)
        await enter(reading_queues(lambda: builder.experts.values(), session=session, task_failed=failed))
        if metrics.worker == 0:
            _log.info("router %s: the fast heads use %s", in_use.router.version, IMPLEMENTATION)
            if check:
                await enter(checking(builder.experts.values(), registry, session=session))
        services.reload = reload = Reload(services, settings=settings, in_use=in_use, builder=builder, read=read)
        del in_use  # this frame would keep the first router in memory for the life of the process
        await enter(reload.watching(since=states, task_failed=failed))
        yield services


async def _open_logs(
    stack: AsyncExitStack, settings: Settings, registry: Registry, metrics: Metrics
) -> tuple[RoutingLog, FeedbackLog, LogWriter]:
    """Open the routing log and the feedback log at the declared address, and their writer, with a spool unless the log
    is a file on the same disk."""
    url, retention, days = registry.log.url, registry.log.keep_records, registry.log.keep_days
    log, feedback = open_log_and_feedback(url, base=settings.home, retention=retention, days=days)
    stack.push_async_callback(log.aclose)
    stack.push_async_callback(feedback.aclose)
    spool = None if url.startswith("sqlite:") else settings.home / SPOOL
    writer = LogWriter(log, feedback, spool=spool, count=metrics.record_feedback, task_failed=metrics.task_failed)
    await stack.enter_async_context(writer)
    add_log_metrics(metrics, writer)
    return log, feedback, writer


async def _open_builder(
    stack: AsyncExitStack,
    settings: Settings,
    registry: Registry,
    session: Client,
    threads: Executor,
    metrics: Metrics,
) -> SnapshotBuilder:
    """Open what all snapshots share: limits, issued keys, the residency client, affinity."""
    counters, failed = registry.access.counters, metrics.task_failed
    counts = open_store(counters, "use", file=settings.home / KEYS_FILE, setting="access.counters")
    limiter = await stack.enter_async_context(Limiter(counts, task_failed=failed))
    metrics.gauge("coe_limits_degraded", LIMITS_DEGRADED, lambda: limiter.outage.active, largest=True)
    keys = open_key_store(counters, home=settings.home)
    issued = await stack.enter_async_context(IssuedKeyWatch(keys, task_failed=failed))
    check_issued(registry, issued.keys, now=time.time())
    metrics.gauge("coe_issued_keys_degraded", ISSUED_KEYS_DEGRADED, lambda: issued.outage.active, largest=True)
    builder = SnapshotBuilder(
        settings,
        session=session,
        threads=threads,
        limiter=limiter,
        issued=issued,
        residency=await stack.enter_async_context(open_residency(settings, metrics)),
        affinity=await stack.enter_async_context(open_affinity(counters)),
    )
    stack.push_async_callback(builder.aclose)
    return builder


@asynccontextmanager
async def checking(experts: Iterable[ReplicatedExpert], registry: Registry, *, session: Client) -> AsyncIterator[None]:
    """Request a few tokens from every expert in the background and log the results. Experts that share a device are
    left out: a check would swap their models."""
    local_experts_swap = registry.residency is not None
    chosen = [one for one in experts if one.spec.addresses or one.spec.runtime == "litellm" or not local_experts_swap]

    async def check() -> None:
        try:
            log_findings(await check_experts(chosen, session=session))
        except Exception:
            _log.exception("the check of the experts at the start failed")

    task = asyncio.create_task(check(), name="check of the experts")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
