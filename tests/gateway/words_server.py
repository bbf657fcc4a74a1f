"""Runs the real gateway on a real port with a router that needs no training. Settings come from the environment; the
router's version is what stands in its pointer."""

from __future__ import annotations

import multiprocessing
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from starlette.applications import Starlette

from coe.artifacts.active_state import ActiveState, assignment_in_use
from coe.artifacts.manifest import ASSIGNMENT, ROUTER, noting
from coe.artifacts.store import POINTER, ArtifactStore
from coe.planning.plan import EffectivePlan
from coe.planning.problem import declared_assignment
from coe.registry import load
from coe.settings import Settings
from gateway import cache as cache_step
from gateway.access import limits
from gateway.app import create_app
from gateway.main import open_services
from gateway.observability import tracing
from gateway.process import processes
from gateway.server import open_listener
from tests.fakes import WordRouter


def read(
    settings: Settings,
    _: ActiveState | None = None,
    *,
    packaged: bool = False,
    damaged: dict[str, str] | None = None,
) -> ActiveState:
    registry = load(settings.config, environ=settings.environ)
    router = WordRouter()
    pointer = settings.artifacts / ROUTER / POINTER
    if pointer.exists():
        router.version = pointer.read_text().strip()
    plan = EffectivePlan(declared_assignment(registry, router.categories))
    with noting(damaged, ASSIGNMENT):
        plan = assignment_in_use(settings, registry, router.categories)
    kinds = {kind: ArtifactStore(settings.artifacts, kind).in_use() for kind in (ROUTER, ASSIGNMENT)}
    return ActiveState(
        registry,
        router,
        plan.assignment,
        0.0,
        settings.home,
        versions=kinds,
        consequences=plan.consequences,
        policies=plan.policies,
    )


def build(settings: Settings, workers: Path, number: int) -> Starlette:
    # However busy the machine is, a Redis and a collector that are there reply in time.
    limits.REFRESH_SECONDS = cache_step.LOOKUP_SECONDS = 5.0
    tracing.FLUSH_TIMEOUT_SECONDS = 20.0
    return create_app(partial(open_services, settings, workers=workers / str(number), read=read))


if __name__ == "__main__":
    settings = Settings.read()
    stalled_after = load(settings.config, environ=settings.environ).policy.stream_idle_timeout
    listener = open_listener(settings.host, settings.port, stalled_after=stalled_after)
    processes.HANG_SECONDS = float(os.environ.get("HANG_SECONDS", processes.HANG_SECONDS))
    if "SPAWN" in os.environ:  # as on macOS
        processes._CONTEXT = multiprocessing.get_context("spawn")
    with TemporaryDirectory(prefix="coe-") as workers:
        processes.serve(partial(build, settings, Path(workers)), settings, listener=listener)
