"""The gateway's composition root: checks the settings, opens the services of a worker process, and serves.

`serve` runs the gateway; it starts worker processes (`gateway/process/`), each of which calls `build_app`.
`open_services` opens threads, connections and logs in order and closes them in reverse.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.applications import Starlette

from coe.artifacts.active_state import (
    LoadedRouter,
    check_active_state,
    load_active_state,
    preload_router,
)
from coe.artifacts.api_keys import create_admin_key
from coe.artifacts.artifact_sync import sync_artifacts, sync_once
from coe.artifacts.redis import TRAFFIC_REPORT_FILE
from coe.artifacts.versions import consequences_of, log_consequences
from coe.errors import ConfigError
from coe.experts import endpoints_of
from coe.experts.http.client import Client
from coe.records import LogWriter, open_log_and_feedback
from coe.registry import Registry
from coe.settings import Settings
from coe.supervision import supervised
from gateway.access.access import check_exposure, open_affinity
from gateway.access.issued_keys import KEYS_FILE, IssuedKeyWatch, check_issued, open_key_store
from gateway.access.limits import Limiter
from gateway.app import create_app
from gateway.cache import cache_store, open_cache
from gateway.observability.logs import log_request, log_uncaught
from gateway.observability.metrics import Metrics, share_metrics
from gateway.observability.observers import ImplicitSignals, Recorder
from gateway.observability.state_metrics import add_log_metrics, add_traffic_metrics, open_residency
from gateway.observability.tracing import check_tracing, open_tracing
from gateway.process.jobs import Jobs, watch_experts
from gateway.process.reload import Reader, Reload, file_states, watched_files
from gateway.process.server_polls import reading_queues
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


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError, ArtifactError or WorkerError if the start fails."""
    from gateway.process import processes

    if (created := create_admin_key(settings)) is not None:
        _log.warning(created)
    registry = prepare(settings)
    log_uncaught()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  metrics need no disk
    with open_port(settings, registry) as listener, TemporaryDirectory(prefix="coe-", dir=memory) as workers:
        router = None
        if settings.workers > 1 and processes.SHARES_MEMORY:
            router = preload_router(settings)  # its pages exist once, as no process writes them
            gc.freeze()  # collections in the workers leave the objects of this process alone
        processes.serve(partial(build_app, settings, Path(workers), router), settings, listener=listener)


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


def build_app(settings: Settings, workers: Path, router: LoadedRouter | None, number: int) -> Starlette:
    """The application of the worker process of that number, which uses `router` while it is in use. `workers` is the
    folder in which the workers share their metrics."""
    read = partial(load_active_state, preloaded=router)
    return create_app(partial(open_services, settings, workers=workers / str(number), read=read))


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    workers: Path | None = None,
    read: Reader = load_active_state,
) -> AsyncIterator[Services]:
    """Open the services of a process and close them in reverse order. `read` returns what is in use, now and for every
    reload; `workers` names the files of this process in the folder that several share.

    Raises ConfigError or ArtifactError.
    """
    states = file_states(watched_files(settings))
    in_use = read(settings, None)
    registry, metrics = in_use.registry, Metrics()
    failed = metrics.task_failed
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        threads = stack.enter_context(ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encoder"))
        if workers is not None:
            await enter(share_metrics(workers, metrics))
        tracing = await enter(open_tracing(settings))
        session = await enter(Client())

        url, counters = registry.log.url, registry.access.counters
        retention, days = registry.log.keep_records, registry.log.keep_days
        log, feedback = open_log_and_feedback(url, base=settings.home, retention=retention, days=days)
        stack.push_async_callback(log.aclose)
        stack.push_async_callback(feedback.aclose)
        spool = None if url.startswith("sqlite:") else settings.home / SPOOL  # a log on the same disk needs none
        count = partial(metrics.count, "coe_feedback_total")
        writer = await enter(LogWriter(log, feedback, spool=spool, count=count, task_failed=failed))
        add_log_metrics(metrics, writer)
        recorder = Recorder(writer)
        stack.callback(recorder.flush)

        counts = open_store(counters, "use", file=settings.home / KEYS_FILE, setting="access.counters")
        limiter = await enter(Limiter(counts, task_failed=failed))
        issued = await enter(IssuedKeyWatch(open_key_store(counters, home=settings.home), task_failed=failed))
        check_issued(registry, issued.keys, now=time.time())
        residency = await enter(open_residency(settings, metrics))
        affinity = await enter(open_affinity(counters))
        builder = SnapshotBuilder(
            settings=settings,
            session=session,
            threads=threads,
            limiter=limiter,
            affinity=affinity,
            issued=issued,
            residency=residency,
        )
        stack.push_async_callback(builder.aclose)
        behind = await enter(sync_artifacts(settings, registry.artifacts, task_failed=failed))
        cache = await enter(open_cache(registry.cache))
        count = partial(metrics.count, "coe_responses_not_stored_total")
        stored = await enter(open_stored_step(registry.stored_responses, settings.home, count=count))
        metrics.degraded |= {
            "limits": lambda: limiter.outage.active,
            "issued_keys": lambda: issued.outage.active,
            "artifacts": behind,
            "cache": lambda: cache is not None and cache.answers.outage.active,
            "stored_responses": lambda: stored is not None and stored.outage.active,
        }

        observers = [recorder.observe, ImplicitSignals(writer.put).observe, metrics.observe]
        observers += [tracing.observe] if tracing is not None else []
        observers += [log_request] if settings.access_log else []
        services = Services(
            builder.build(in_use),
            observers=observers,
            metrics=metrics,
            log=log,
            feedback=feedback,
            writer=writer,
            settings=settings,
            jobs=await enter(Jobs(settings)),
            tracing=tracing,
            cache=cache,
            stored=stored,
            residency=residency,
            issued=issued,
        )
        issued.on_change = lambda: services.replace(builder.with_issued(services.snapshot))
        await services.snapshot.composition.warm()
        add_traffic_metrics(metrics, settings.artifacts / TRAFFIC_REPORT_FILE, services)
        await enter(reading_queues(lambda: builder.experts.values(), session=session, task_failed=failed))
        if metrics.worker == 0:
            watch = partial(watch_experts, services.jobs, settings.artifacts / TRAFFIC_REPORT_FILE)
            stack.callback(supervised(watch, "alarms", task_failed=failed, may_return=True).cancel)
            _log.info("router %s: the fast heads use %s", in_use.router.version, IMPLEMENTATION)
        services.reload = reload = Reload(services, in_use=in_use, builder=builder, read=read)
        del in_use  # this frame would keep the first router in memory for the life of the process
        await enter(reload.watching(since=states, task_failed=failed))
        yield services
