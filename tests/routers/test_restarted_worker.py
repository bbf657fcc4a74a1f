"""Workers that crash while the files in use are invalid start again after the repair."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from coe.settings import Settings
from tests.routers.test_preloaded_router import Built, declare, publish, serving, wait_until_ready

DEADLINE_SECONDS = 120.0
"""Time limit of every wait."""


@pytest.fixture
def settings(tmp_path: Path, built: Built) -> Settings:
    settings = declare(tmp_path)
    publish(settings, built)
    return settings


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the time limit is over"
        time.sleep(0.05)


def ready(url: str) -> dict[str, Any]:
    """The JSON of /health/ready from any worker; empty while none answers."""
    with suppress(OSError), urllib.request.urlopen(f"{url}/health/ready", timeout=5) as response:
        found: dict[str, Any] = json.load(response)
        return found
    return {}


def test_a_worker_that_crashes_while_the_declaration_is_invalid_names_the_mistake_and_starts_after_the_repair(
    settings: Settings, tmp_path: Path
) -> None:
    with serving(settings, log := tmp_path / "log") as (process, url):
        wait_until_ready(process, url)
        parent = psutil.Process(process.pid)
        wait_for(lambda: len(parent.children()) == 2)
        settings.config.write_text("version: 1\nexperts: [")
        wait_for(lambda: ready(url).get("reload_error"))
        for worker in parent.children():
            worker.kill()
        wait_for(
            lambda: "ConfigError: experts.yaml:2: " in log.read_text().partition("a worker failed, or cannot start")[2]
        )
        declare(tmp_path)
        wait_for(lambda: ready(url).get("reload_error") is False)
        process.terminate()
        assert process.wait(60) == 0
