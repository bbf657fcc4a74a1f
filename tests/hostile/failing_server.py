"""Runs the gateway with workers that fail at their start, in the way that the environment variable FAILS selects.

`lifespan`: every start fails. `never`: no start fails. The gateway soon finds workers that hang.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from coe.settings import Settings
from gateway.main import workers_folder
from gateway.process import processes, worker
from gateway.server import open_listener
from tests.gateway.words_server import build as build_well


def build(settings: Settings, workers: Path | None, number: int) -> Starlette:
    fails = os.environ["FAILS"] == "lifespan"
    return Starlette(lifespan=_fails) if fails else build_well(settings, workers, number)


@asynccontextmanager
async def _fails(_: Starlette) -> AsyncIterator[None]:
    raise OSError("the disk is away")
    yield


if __name__ == "__main__":
    worker.BEAT_SECONDS, processes.CHECK_SECONDS = 0.1, 2.0
    settings = Settings.read()
    listener = open_listener(settings.host, settings.port, stalled_after=60)
    with workers_folder(settings.workers) as workers:
        processes.serve(partial(build, settings, workers), settings, listener=listener)
