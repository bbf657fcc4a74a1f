"""Runs the gateway with workers that all fail at their start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from coe.settings import Settings
from gateway.process import processes
from gateway.server import open_listener


def build(_: int) -> Starlette:
    return Starlette(lifespan=_fails)


@asynccontextmanager
async def _fails(_: Starlette) -> AsyncIterator[None]:
    raise OSError("the disk is away")
    yield


if __name__ == "__main__":
    settings = Settings.read()
    listener = open_listener(settings.host, settings.port, stalled_after=60)
    processes.serve(build, settings, listener=listener)
