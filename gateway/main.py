"""The gateway's composition root: from settings to a running server."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from starlette.applications import Starlette

import routers
from coe.composition import Composition
from coe.errors import ConfigError
from coe.experts.http import HttpExpert, open_session
from coe.records import RecordWriter, open_log
from coe.registry import ExpertSpec
from coe.settings import Endpoint, Settings
from gateway.access import Access
from gateway.app import Parts, create_app
from gateway.current import Current, Serving
from gateway.in_use import InUse, check_in_use, read_in_use
from gateway.metrics import Metrics
from gateway.recorder import Recorder

SPOOL = "spool.sqlite"
THREADS = 2
"""For looks at the sentence encoder, each one thread wide: more would fight the experts for the cores."""


def prepare(settings: Settings) -> None:
    """Check all that serving needs, before a port is opened. Raises ConfigError or ArtifactError."""
    registry, _ = check_in_use(settings)
    for spec in registry.experts:
        endpoint_of(spec, settings)


def endpoint_of(spec: ExpertSpec, settings: Settings) -> Endpoint:
    """Where an expert is served. Raises ConfigError for a local expert that nobody started."""
    if spec.addresses:
        return Endpoint(spec.addresses[0], spec.model)
    if spec.name not in settings.endpoints:
        raise ConfigError(f"expert {spec.name!r} runs locally and is not started; use `coe up`, which starts it")
    return settings.endpoints[spec.name]


def build_app(settings: Settings) -> Starlette:
    """The application of one worker process; it loads its own router, since a network does not survive a fork."""
    return create_app(partial(open_parts, settings, read_in_use(settings)))


@asynccontextmanager
async def open_parts(settings: Settings, in_use: InUse) -> AsyncIterator[Parts]:
    """Open threads, connections and the routing log, and close them in turn."""
    registry = in_use.registry
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(THREADS, thread_name_prefix="encoder"))
        session = await stack.enter_async_context(open_session())
        log = open_log(registry.log.url, base=settings.home)
        stack.push_async_callback(log.aclose)
        writer = await stack.enter_async_context(RecordWriter(log, spool=settings.home / SPOOL))
        encoder = routers.load_encoder(in_use.folder) if registry.log.store_embeddings else None
        recorder = await stack.enter_async_context(Recorder(writer, encoder=encoder, threads=threads))
        experts = {
            spec.name: HttpExpert(spec, endpoint_of(spec, settings), session=session) for spec in registry.experts
        }
        composition = Composition(
            registry,
            router=in_use.router,
            assignment=in_use.assignment,
            experts=experts,
            threads=threads,
            doubt=in_use.doubt,
        )
        metrics = Metrics()
        metrics.gauge("coe_log_backlog", "Records waiting to be written.", lambda: writer.backlog)
        metrics.gauge(
            "coe_log_dropped", "Records lost since start: neither log nor spool took them.", lambda: writer.dropped
        )
        metrics.gauge(
            "coe_log_failing", "1 while the routing log cannot be written.", lambda: writer.last_error is not None
        )
        current = Current(Serving(composition, Access(registry.access)))
        yield Parts(current, (metrics.observe, recorder.observe), metrics)


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises ConfigError or ArtifactError when it cannot begin."""
    from granian.constants import Interfaces, Loops
    from granian.log import LogLevels
    from granian.server import Server

    prepare(settings)
    address = check_port(settings)
    server = Server(
        "gateway",
        address=address,
        port=settings.port,
        interface=Interfaces.ASGI,
        loop=Loops.uvloop,
        workers=settings.workers,
        websockets=False,
        log_level=LogLevels.warning,
        respawn_failed_workers=True,
        workers_kill_timeout=30,
    )
    server.serve(target_loader=partial(build_app, settings), wrap_loader=False)


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
