"""Runs the gateway; while the file HUNGRY exists, its worker process holds every free file descriptor."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from starlette.applications import Starlette

from coe.settings import Settings
from gateway.http.server import open_listener
from gateway.main import workers_folder
from gateway.process import processes
from tests.gateway.words_server import build as build_well


def build(settings: Settings, workers: Path | None, *, restarted: bool = False) -> Starlette:
    threading.Thread(target=_eat, args=(Path(os.environ["HUNGRY"]),), daemon=True).start()
    return build_well(settings, workers)


def _eat(hungry: Path) -> None:
    eaten: list[int] = []
    while True:
        if hungry.exists():
            with suppress(OSError):
                while True:
                    eaten.append(os.dup(0))
        while eaten and not hungry.exists():
            os.close(eaten.pop())
        time.sleep(0.01)


if __name__ == "__main__":
    settings = Settings.read()
    listener = open_listener(settings.host, settings.port, stalled_after=60)
    with workers_folder(settings.workers) as workers:
        processes.serve(partial(build, settings, workers), settings, listener=listener)
