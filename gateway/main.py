"""The gateway's composition root: from settings to a running server.

The check of all experts at the start of a gateway, in the background.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.applications import Starlette

import routers
from coe.errors import ConfigError
from coe.experts import ReplicatedExpert, endpoints_of, watching
from coe.experts.http.client import Client
from coe.experts.live_check import check_experts, log_findings
from coe.learning.monitoring.traffic_report import FILE
from coe.records import FeedbackWriter, RecordWriter, open_feedback, open_log
from coe.registry import Registry
from coe.runtime.active_state import check_active_state, load_active_state
from coe.runtime.artifact_sync import sync_artifacts, sync_once
from coe.runtime.consequences import consequences_of, log_consequences
from coe.settings import Settings
from gateway.access import check_counters, check_exposure, create_admin_key, open_limiter
from gateway.access.conversations import open_affinity
from gateway.app import create_app
from gateway.observability.implicit_feedback import ImplicitSignals
from gateway.observability.logs import log_uncaught
from gateway.observability.observers import Recorder, open_observability
from gateway.observability.recent import RecentRequests
from gateway.observability.residency import open_residency
from gateway.observability.state_metrics import add_feedback_metrics, add_log_metrics
from gateway.observability.tracing import check_tracing
from gateway.observability.traffic_metrics import TrafficMetrics
from gateway.parts import Parts
from gateway.process.descriptors import ConnectionLimits, raise_limit, soft_limit, warn_if_few
from gateway.process.drain import Drain
from gateway.process.gc_tuning import trimming_memory, tune_gc
from gateway.process.jobs import Jobs
from gateway.process.plan_solver import PlanSolver
from gateway.process.reload import Reader, Reload, watched_file_states
from gateway.process.signals import handle_signals
from gateway.process.tcp_timeouts import resetting_stalled_clients
from gateway.serving_state import ServingState
from gateway.wiring import Wiring

_log_expert_check = logging.getLogger("gateway")


@asynccontextmanager
async def checking(experts: Iterable[ReplicatedExpert], registry: Registry, *, session: Client) -> AsyncIterator[None]:
    """Request one token from every expert and log the result, while the block serves. Experts that take turns on a
    device are left out: a check would make them switch."""
    local_take_turns = registry.residency is not None
    chosen = [one for one in experts if one.spec.addresses or one.spec.runtime == "litellm" or not local_take_turns]
    task = asyncio.create_task(_check(chosen, session), name="check of the experts")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _check(experts: Iterable[ReplicatedExpert], session: Client) -> None:
    try:
        log_findings(await check_experts(experts, session=session))
    except Exception:
        _log_expert_check.exception("the check of the experts at the start failed")


_log = logging.getLogger("gateway")

SPOOL = "spool.sqlite"
BEHIND = "1 while this gateway cannot take over the shared artifacts in use."
THREADS = 2
"""For looks at the sentence encoder, each one thread wide: more would fight the experts for the cores."""


def prepare(settings: Settings) -> None:
    """Check all that serving needs, before a port is opened. Raises ConfigError or ArtifactError."""
    sync_once(settings)
    registry, _ = check_active_state(settings)
    warn_if_few(raise_limit(), concurrent_requests=registry.limits.concurrent_requests)
    check_exposure(settings, registry.access)
    check_counters(registry.access, workers=settings.workers)
    for spec in registry.experts:
        endpoints_of(spec, settings.endpoints)
    check_tracing(settings)
    log_consequences(consequences_of(settings, registry))


def build_app(settings: Settings, workers: Path | None = None) -> Starlette:
    """The application of one worker process; it loads its own router, since a network does not survive a fork.
    `workers` is the folder in which several answer for each other."""
    return create_app(partial(open_worker, settings, workers=workers, check=settings.check_experts))


@asynccontextmanager
async def open_worker(
    settings: Settings, *, workers: Path | None = None, read: Reader = load_active_state, check: bool = False
) -> AsyncIterator[Parts]:
    """The parts of a process that hears its parent's signals and lets go of clients that do not read."""
    async with open_parts(settings, workers=workers, read=read, check=check) as parts:
        assert parts.reload is not None
        drain = Drain(parts.current, lame_duck=settings.drain)
        stalled = parts.current.serving.registry.policy.stream_idle_timeout
        signal_handlers = handle_signals(drain=drain.begin, reload=parts.reload.request, abort=drain.abort)
        failed = parts.metrics.task_failed
        async with (
            signal_handlers,
            resetting_stalled_clients(after=stalled, task_failed=failed),
            trimming_memory(task_failed=failed),
        ):
            tune_gc()
            yield parts


@asynccontextmanager
async def open_parts(
    settings: Settings, *, workers: Path | None = None, read: Reader = load_active_state, check: bool = False
) -> AsyncIterator[Parts]:
    """Open threads, connections and the routing log, and close them in turn. `read` tells what is in use, now and for
    every reload. With `check` the first worker checks the experts in the background. Raises ConfigError or
    ArtifactError."""
    seen = watched_file_states(settings)
    in_use = read(settings, None)
    registry = in_use.registry
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(THREADS, thread_name_prefix="encoder"))
        observation = await stack.enter_async_context(open_observability(settings, workers))
        failed = observation.metrics.task_failed
        session = await stack.enter_async_context(Client(connections=ConnectionLimits.within(soft_limit()).experts))
        kept, days = registry.log.keep_records, registry.log.keep_days
        log = open_log(registry.log.url, base=settings.home, retention=kept, days=days)
        stack.push_async_callback(log.aclose)
        feedback = open_feedback(registry.log.url, base=settings.home, retention=kept, days=days)
        stack.push_async_callback(feedback.aclose)
        writer = await stack.enter_async_context(RecordWriter(log, spool=settings.home / SPOOL, task_failed=failed))
        encoder = routers.load_encoder(in_use.folder) if registry.log.store_embeddings else None
        recorder = await stack.enter_async_context(Recorder(writer, encoder=encoder, threads=threads))
        add_log_metrics(observation.metrics, writer)
        keeper = FeedbackWriter(
            feedback, log, spool=settings.home / SPOOL, count=observation.metrics.record_feedback, task_failed=failed
        )
        await stack.enter_async_context(keeper)
        add_feedback_metrics(observation.metrics, keeper)
        signals, recent = ImplicitSignals(keeper.put), RecentRequests()
        limiter = await stack.enter_async_context(
            open_limiter(registry.access.counters, home=settings.home, task_failed=failed)
        )
        alone = "1 while Redis or the file of counts is away and this gateway counts limits for itself."
        observation.metrics.gauge("coe_limits_degraded", alone, lambda: limiter.degraded, largest=True)
        turns = await stack.enter_async_context(open_residency(settings, observation.metrics))
        affinity = await stack.enter_async_context(open_affinity(registry.access.counters, task_failed=failed))
        assembly = Wiring(settings, session=session, threads=threads, limiter=limiter, affinity=affinity, turns=turns)
        stack.push_async_callback(assembly.aclose)
        current = ServingState(assembly.serving(in_use))
        TrafficMetrics(settings.artifacts / FILE, current).register(observation.metrics)
        await stack.enter_async_context(
            watching(lambda: assembly.experts.values(), session=session, task_failed=failed)
        )
        if check and observation.metrics.registry.worker == 0:
            await stack.enter_async_context(checking(assembly.experts.values(), registry, session=session))
        reload = Reload(current, settings=settings, in_use=in_use, wiring=assembly, read=read)
        del in_use  # or this frame would keep the first router as long as the process lives
        await stack.enter_async_context(reload.watching(since=seen, task_failed=failed))
        behind = await stack.enter_async_context(sync_artifacts(settings, registry.artifacts, task_failed=failed))
        observation.metrics.gauge("coe_artifacts_behind", BEHIND, behind, largest=True)
        observers = (recent.observe, recorder.observe, signals.observe, *observation.observers)
        jobs = await stack.enter_async_context(Jobs(settings))
        solver = await stack.enter_async_context(PlanSolver(settings))
        metrics, tracing = observation.metrics, observation.tracing
        kept_in = (log, feedback, keeper, recent)
        yield Parts(current, observers, metrics, *kept_in, settings, jobs, solver, tracing, reload)


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError, ArtifactError or WorkerError when it cannot begin."""
    from gateway.process import processes

    if (created := create_admin_key(settings)) is not None:
        _log.warning(created)
    prepare(settings)
    address = check_port(settings)
    log_uncaught()
    with several(settings.workers) as workers:
        processes.serve(partial(build_app, settings, workers), settings, address=address)


@contextmanager
def several(count: int) -> Iterator[Path | None]:
    """A folder for workers to answer for each other; None where there is one."""
    if count == 1:
        yield None
    else:
        with TemporaryDirectory(prefix="coe-") as folder:  # short, as the paths of sockets must be
            yield Path(folder)


def check_port(settings: Settings) -> str:
    """The numeric address to listen on. Raises ConfigError when it cannot be listened on; two gateways would share it
    silently otherwise."""
    where = f"{settings.host}:{settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family):
            return str(address[0])
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"{where} is in use; stop what listens there or set COE_PORT") from None
        raise ConfigError(f"cannot listen on {where}: {error.strerror or error}; set COE_HOST and COE_PORT") from None
