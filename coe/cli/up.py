"""`coe up` runs the whole service; `coe serve` runs the gateway alone.

Runs the experts' servers in turns for `coe up`, and leaves word of where gateways and `coe status` may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from coe.artifacts.store import ArtifactStore
from coe.cli.common import Config, settings_for
from coe.cli.live_check import ENDPOINTS, check_live
from coe.errors import CoEError, FleetError
from coe.jobs.engine import Engine
from coe.registry import Registry, load
from coe.settings import Endpoint, Settings
from coe.terminal import say

if TYPE_CHECKING:
    from coe.fleet import AdapterSync, LocalExpert, ServerSpec
    from coe.fleet.vllm.adapters import (
        Servers,
    )  # and the rest of it where it is used: what is imported here, a gateway carries
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

from coe.core import GENERAL
from coe.fleet import ServerSpec
from coe.fleet.residency.devices import floors
from coe.fleet.residency.residency import Residency
from coe.fleet.residency.socket_server import desk

DRAIN = 55.0
"""Seconds the gateway has to end when it is stopped; it gives answers 30 and records 20 of them."""

Host = Annotated[str | None, typer.Option("--host", help="[default: COE_HOST or 127.0.0.1]")]
Port = Annotated[int | None, typer.Option("--port", min=1, max=65535, help="[default: COE_PORT or 8080]")]

Where = Annotated[Engine, typer.Option("--engine", help="Where expert servers run: here, or over a Ray cluster.")]


def serve(host: Host = None, port: Port = None, config: Config = None) -> None:
    """Run the gateway alone, for experts that run elsewhere."""
    from gateway.main import serve as run

    run(_listening(settings_for(config), host, port))


def up(host: Host = None, port: Port = None, config: Config = None, engine: Where = Engine.LOCAL) -> None:
    """Start the local experts and the gateway, and keep them running until Ctrl-C or SIGTERM."""
    settings = _listening(settings_for(config), host, port)
    with contextlib.ExitStack() as stack:
        ray = None
        if engine is Engine.RAY:
            from coe.fleet.ray.cluster import ray_cluster

            ray = stack.enter_context(ray_cluster())  # before our own answers to signals, which it replaces
        try:
            asyncio.run(_up(settings, ray))
        except asyncio.CancelledError:
            say("stopped")


def _listening(settings: Settings, host: str | None, port: int | None) -> Settings:
    return replace(settings, host=host or settings.host, port=port or settings.port)


async def _up(settings: Settings, ray: Any = None) -> None:
    from gateway.access import check_exposure, create_admin_key, with_admin_key
    from gateway.main import check_port

    _stop_on_signals()
    if (created := create_admin_key(settings)) is not None:
        say(created)
    registry = with_admin_key(load(settings.config, environ=settings.environ), settings)
    check_exposure(settings, registry.access)
    check_port(settings)
    await _ensure_router(settings)
    async with contextlib.AsyncExitStack() as stack:
        if ray is not None:
            await _over_a_cluster(stack, settings, registry, ray)
        else:
            await _on_this_machine(stack, settings, registry)


async def _over_a_cluster(stack: contextlib.AsyncExitStack, settings: Settings, registry: Registry, ray: Any) -> None:
    from coe.fleet.ray.fleet import spread

    experts = await stack.enter_async_context(spread(settings, registry, ray=ray, tell=partial(_tell, settings)))
    await _serve(stack, settings, registry)
    await _adapting(settings, experts.fleet, experts.tell).watch(experts.running, experts.experts)


async def _on_this_machine(stack: contextlib.AsyncExitStack, settings: Settings, registry: Registry) -> None:
    from coe.fleet import Fleet, end_leftovers, local_servers
    from coe.fleet.planning import endpoint_of, shared_by

    servers, endpoints = local_servers(
        registry.experts,
        cache=settings.models,
        logs=settings.logs,
        python=Path(sys.executable),
        say=say,
        beside=settings.config.parent,
    )
    if ended := await asyncio.to_thread(end_leftovers, settings.logs):
        say(f"ended what an earlier start left running: {', '.join(ended)}")
    for expert in registry.experts:
        if expert.replicas > 1:
            say(f"one server of {expert.name!r} is started, not {expert.replicas}: replicas are for `--engine ray`")
    if servers:
        say(f"starting {len(servers)} expert server{'s' if len(servers) > 1 else ''} for {', '.join(endpoints)}")
    _tell(settings, {name: (endpoint,) for name, endpoint in endpoints.items()})
    if registry.residency is not None:
        await _serve(stack, settings, registry, await stack.enter_async_context(in_turns(settings, registry, servers)))
        await asyncio.Event().wait()
    fleet = await stack.enter_async_context(Fleet(servers, say=say))
    await _serve(stack, settings, registry)
    by_address = {f"{spec.root}/v1": spec for spec in servers}
    serving = [expert for expert in registry.experts if expert.name in endpoints]
    running = {shared_by(expert): by_address[endpoints[expert.name].base_url] for expert in serving}

    def tell(experts: Sequence[LocalExpert]) -> None:
        _tell(settings, {one.name: (endpoint_of(one, running[shared_by(one)]),) for one in experts})

    await _adapting(settings, fleet, tell).watch({shared: spec.key for shared, spec in running.items()}, serving)


async def _serve(
    stack: contextlib.AsyncExitStack, settings: Settings, registry: Registry, turns: Path | None = None
) -> None:
    """Run the gateway until the end, in front of servers that run."""
    from coe.fleet import Fleet, Timeouts

    await stack.enter_async_context(Fleet([_gateway(settings, turns)], say=say, pace=Timeouts(grace=DRAIN)))
    say(_welcome(settings, registry))
    if settings.check_experts:
        await stack.enter_async_context(_checking(registry, settings))


@contextlib.asynccontextmanager
async def _checking(registry: Registry, settings: Settings) -> AsyncIterator[None]:
    check = asyncio.create_task(_check(registry, settings), name="check of the experts")
    try:
        yield
    finally:
        check.cancel()
        await asyncio.gather(check, return_exceptions=True)


async def _check(registry: Registry, settings: Settings) -> None:
    """Say which experts do not answer, in the background: the gateway serves meanwhile."""
    try:
        findings = await check_live(registry, settings)
    except CoEError as error:
        say(f"note: the experts could not be checked: {error}")
        return
    for finding in findings:
        if not finding.ok:
            say(f"note: {finding.sentence}")
    say(f"{sum(finding.ok for finding in findings)} of {len(findings)} expert servers answer")


def _adapting(settings: Settings, fleet: Servers, tell: Callable[[Sequence[LocalExpert]], None]) -> AdapterSync:
    from coe.fleet import AdapterSync

    def read() -> Sequence[LocalExpert]:
        return load(settings.config, environ=settings.environ).experts

    return AdapterSync(fleet, config=settings.config, read=read, tell=tell, say=say)


def _tell(settings: Settings, endpoints: Mapping[str, Sequence[Endpoint]]) -> None:
    """Where gateways read which experts are served at which address; moved into place, so that it is always whole."""
    settings.home.mkdir(parents=True, exist_ok=True)
    draft = settings.home / f".{ENDPOINTS}"
    draft.write_bytes(orjson.dumps({name: [asdict(one) for one in there] for name, there in endpoints.items()}))
    draft.replace(settings.home / ENDPOINTS)


def _stop_on_signals() -> None:
    """SIGINT and SIGTERM cancel what is being done, which stops every process on the way out."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)


async def _ensure_router(settings: Settings) -> None:
    """Train the router on first start, in a process of its own: what training imports is of no use afterwards."""
    from coe.runtime.artifact_sync import sync_once

    sync_once(settings)
    if ArtifactStore(settings.artifacts, "router").current() is not None:
        return
    say("training the category router (first start only, about a minute)")
    command = (sys.executable, "-m", "coe.cli", "train", "--config", str(settings.config))
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if code != 0:
        raise FleetError("the router could not be trained; the reason stands above")


def _gateway(settings: Settings, turns: Path | None = None) -> ServerSpec:
    from coe.fleet import ServerSpec

    listen = ("--host", settings.host, "--port", str(settings.port), "--config", str(settings.config))
    return ServerSpec(
        key="gateway",
        argv=(sys.executable, "-m", "coe.cli", "serve", *listen),
        host=_reachable(settings),
        port=settings.port,
        env={
            "COE_ENDPOINTS": str(settings.home / ENDPOINTS),
            "COE_TURNS": str(turns or ""),
            "COE_CHECK_EXPERTS": "0",  # `coe up` checks them itself, where people see it
        },
        model=None,
        log=settings.logs / "gateway.log",
        ready_timeout=60.0,
    )


def _welcome(settings: Settings, registry: Registry) -> str:
    here = f"http://{_reachable(settings)}:{settings.port}"
    url = f"{here}/v1"
    key, sent = ("YOUR_KEY", " -H 'authorization: Bearer YOUR_KEY'") if registry.access.keys else ("none", "")
    return f"""
CoE answers at {url}   (experts: {", ".join(registry.expert_names)}; Ctrl-C stops everything; logs in {settings.logs})
Look at it and try it at {here}/ui/

  curl {url}/chat/completions -H 'content-type: application/json'{sent} \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "Write a haiku about rain"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}", api_key="{key}")
  answer = client.chat.completions.create(model="auto", messages=[{{"role": "user", "content": "What is 17 * 23?"}}])
  print(answer.choices[0].message.content)
"""


def _reachable(settings: Settings) -> str:
    """An address at which the gateway can be asked from here."""
    return "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104


@asynccontextmanager
async def in_turns(settings: Settings, registry: Registry, servers: Sequence[ServerSpec]) -> AsyncIterator[Path]:
    """The socket at which the running Residency is asked. Raises FleetError where the first experts do not start."""
    assert registry.residency is not None
    assignment = {GENERAL: registry.general_expert} | registry.assignment
    residency = Residency(
        floors(registry, servers), assignment=assignment, max_wait=registry.residency.max_wait, say=say
    )
    with TemporaryDirectory(prefix="coe-") as folder:  # short, as the paths of sockets must be
        address = Path(folder) / "turns.sock"
        async with residency, desk(residency, address):
            _link(settings.turns_link, address)
            yield address


def _link(link: Path, address: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(address)
