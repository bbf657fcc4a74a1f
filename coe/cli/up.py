"""`coe up` runs the whole service: the servers of local experts and the gateway. `coe serve` runs the gateway alone.

`coe up` starts the gateway as a child process and writes the addresses of local experts into the state folder. With
`residency` declared, experts share devices: a scheduler starts and stops their servers, and gateways reach it over a
Unix socket. `coe serve` must start quickly, so the code that runs servers is imported where it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
import typer

from coe.artifacts.manifest import replace_file
from coe.artifacts.store import ArtifactStore
from coe.cli.check import ENDPOINTS_FILE, check_live
from coe.cli.common import Config, File, settings_for
from coe.errors import CoEError, FleetError
from coe.file_lock import file_lock
from coe.registry import Registry, load
from coe.settings import Endpoint, Settings
from coe.terminal import print_line

if TYPE_CHECKING:
    from coe.fleet.specs import ServerSpec

DRAIN_SECONDS = 55.0
"""Time that a stopped gateway has to end; it uses up to 30 for requests in flight and 20 for records."""

LOCK_FILE = "up.lock"
"""Lock file in the state folder: two `coe up` would replace each other's addresses of local experts."""

Host = Annotated[str | None, typer.Option("--host", help="[default: COE_HOST or 127.0.0.1]")]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="[default: COE_PORT or 8080]")]


ServerExecutor = Annotated[
    Literal["local", "ray"],
    typer.Option("--executor", help="Where expert servers run: on this machine, or on a Ray cluster."),
]


def serve(file: File = None, host: Host = None, port: Port = None, config: Config = None) -> None:
    """Run the gateway alone, for experts that run elsewhere."""
    from gateway.main import serve as run

    run(_with_address(settings_for(config or file), host, port))


def up(
    file: File = None, host: Host = None, port: Port = None, config: Config = None, executor: ServerExecutor = "local"
) -> None:
    """Start the local experts and the gateway, and keep them running until Ctrl-C or SIGTERM."""
    settings = _with_address(settings_for(config or file), host, port)
    with contextlib.ExitStack() as stack:
        ray = None
        if executor == "ray":
            from coe.fleet.ray_servers import ray_cluster

            ray = stack.enter_context(ray_cluster())  # before our signal handlers, which it would replace
        try:
            asyncio.run(_up(settings, ray))
        except asyncio.CancelledError:
            print_line("stopped")


def _with_address(settings: Settings, host: str | None, port: int | None) -> Settings:
    return replace(settings, host=host or settings.host, port=port or settings.port)


async def _up(settings: Settings, ray: Any = None) -> None:
    from coe.artifacts.api_keys import create_admin_key, with_admin_key
    from gateway.access.access import check_exposure
    from gateway.main import open_port

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # leaving the contexts of this task stops every process
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    if (created := create_admin_key(settings)) is not None:
        print_line(created)
    registry = with_admin_key(load(settings.config, environ=settings.environ), settings)
    check_exposure(settings, registry.access)
    open_port(settings, registry).close()  # a port in use is reported before anything is started

    def held(holder: str) -> FleetError:
        return FleetError(
            f"another `coe up` uses the state folder {settings.home} ({holder or 'it has just begun'}); stop it, or "
            "set COE_HOME to another folder"
        )

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(file_lock(settings.home / LOCK_FILE, held=held))
        await _ensure_router(settings, registry)
        socket = None
        if ray is None:
            socket = await _start_servers(stack, settings, registry)
        else:
            from coe.fleet.ray_servers import running_cluster

            cluster = running_cluster(settings, registry, ray=ray, publish=partial(_write_endpoints, settings))
            await stack.enter_async_context(cluster)
        await _serve(stack, settings, registry, socket)
        await asyncio.Event().wait()


async def _start_servers(stack: contextlib.AsyncExitStack, settings: Settings, registry: Registry) -> Path | None:
    """Run the servers of local experts until the stack closes. Returns the socket of residency if it is declared."""
    from coe.fleet.engines import local_servers
    from coe.fleet.server import Fleet

    servers, endpoints = local_servers(
        registry.hosted_experts,
        cache=settings.models,
        logs=settings.logs,
        python=Path(sys.executable),
        report=print_line,
        base_folder=settings.config.parent,
    )
    if servers:
        print_line(f"starting {len(servers)} expert server{'s' if len(servers) > 1 else ''} for {', '.join(endpoints)}")
    _write_endpoints(settings, {name: (endpoint,) for name, endpoint in endpoints.items()})
    if registry.residency is not None:
        from coe.fleet.residency.socket_server import running_residency

        return await stack.enter_async_context(running_residency(settings, registry, servers))
    await stack.enter_async_context(Fleet(servers, report=print_line))
    return None


async def _serve(stack: contextlib.AsyncExitStack, settings: Settings, registry: Registry, socket: Path | None) -> None:
    """Start the gateway in front of running servers; it runs until the stack closes."""
    from coe.fleet.server import Fleet
    from coe.fleet.specs import Timeouts

    await stack.enter_async_context(
        Fleet([_gateway(settings, socket)], report=print_line, timeouts=Timeouts(grace=DRAIN_SECONDS))
    )
    print_line(_welcome(settings, registry))
    if settings.check_experts:
        check = asyncio.create_task(_check(registry, settings), name="expert-check")
        stack.push_async_callback(asyncio.wait, [check])
        stack.callback(check.cancel)


async def _check(registry: Registry, settings: Settings) -> None:
    """Print which experts do not answer, while the gateway serves already."""
    try:
        findings = await check_live(registry, settings)
    except CoEError as error:
        print_line(f"note: the experts could not be checked: {error}")
        return
    for finding in findings:
        if not finding.ok:
            print_line(f"note: {finding.sentence}")
    print_line(f"{sum(finding.ok for finding in findings)} of {len(findings)} expert servers answer")


def _write_endpoints(settings: Settings, endpoints: Mapping[str, Sequence[Endpoint]]) -> None:
    """Replace the file from which gateways read the addresses of local experts, atomically."""
    settings.home.mkdir(parents=True, exist_ok=True)
    content = orjson.dumps({name: [asdict(one) for one in there] for name, there in endpoints.items()})
    replace_file(settings.home / ENDPOINTS_FILE, content)


async def _ensure_router(settings: Settings, registry: Registry) -> None:
    """Train the router on first start unless the packaged one fits, in a child process: serving does not need what
    training imports."""
    from coe.artifacts.active_state import check_fit, packaged_router
    from coe.artifacts.artifact_sync import sync_once

    sync_once(settings)
    if ArtifactStore(settings.artifacts, "router").current() is not None:
        return
    try:
        if (packaged := packaged_router(registry)) is not None:
            check_fit(registry, packaged)
            return
    except CoEError as error:
        print_line(f"note: {error}")
    print_line("training the category router (first start only, one to two minutes)")
    command = (sys.executable, "-P", "-m", "coe.cli", "train", "--config", str(settings.config))
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if code != 0:
        raise FleetError("the router could not be trained; see the error above")


def _gateway(settings: Settings, socket: Path | None) -> ServerSpec:
    from coe.fleet.specs import ServerSpec

    listen = ("--host", settings.host, "--port", str(settings.port), "--config", str(settings.config))
    return ServerSpec(
        key="gateway",
        argv=(sys.executable, "-P", "-m", "coe.cli", "serve", *listen),
        host=settings.reachable_host,
        port=settings.port,
        env={"COE_ENDPOINTS": str(settings.home / ENDPOINTS_FILE), "COE_RESIDENCY_SOCKET": str(socket or "")},
        model=None,
        log=settings.logs / "gateway.log",
        ready_timeout=60.0,
    )


def _welcome(settings: Settings, registry: Registry) -> str:
    here = f"http://{settings.reachable_host}:{settings.port}"
    url = f"{here}/v1"
    sent = " -H 'authorization: Bearer YOUR_KEY'" if registry.access.keys else ""
    return f"""
CoE answers at {url}   (experts: {", ".join(registry.expert_names)}; Ctrl-C stops everything; logs in {settings.logs})
Open {here}/ui/ to watch and try it

  curl {url}/chat/completions -H 'content-type: application/json'{sent} \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "Write a haiku about rain"}}]}}'
"""
