"""Workers that crash start again while the files in use are invalid, and apply the repair."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from coe.artifacts.kinds import ROUTER
from coe.artifacts.store import POINTER, ArtifactStore
from coe.registry import load
from coe.runtime.active_state import load_active_state, preload_router
from coe.runtime.kept_state import KeptState
from coe.settings import Settings
from gateway.main import PreloadedRouter
from tests.routers.test_preloaded_router import CHESS, Built, declare, publish, serving, wait_until_ready
from tests.worker_choice import only

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
    with suppress(OSError), urllib.request.urlopen(f"{url}/health/ready", timeout=60) as response:
        found: dict[str, Any] = json.load(response)
        return found
    return {}


def all_report(process: subprocess.Popen[bytes], url: str, **expected: object) -> bool:
    """Return True if both workers run and report these fields."""
    workers = psutil.Process(process.pid).children()
    if len(workers) != 2:
        return False
    for worker in workers:
        with only(worker):
            if not expected.items() <= ready(url).items():
                return False
    return True


def wait_until_all_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait for both workers: one that starts after a change of a file reads it at its start, and does not reload it."""
    wait_until_ready(process, url)
    wait_for(lambda: all_report(process, url, reload_error=False))


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def kept(settings: Settings) -> str:
    """The state that the running gateway keeps; empty while it keeps none."""
    found = [path.read_text() for path in settings.home.glob("last-good/*/state.json")]
    return found[0] if found else ""


def crash_workers(process: subprocess.Popen[bytes], url: str) -> None:
    """Kill both workers, so that answers come from restarted ones."""
    parent = psutil.Process(process.pid)
    killed = parent.children()
    assert len(killed) == 2
    for worker in killed:
        worker.kill()
    wait_for(lambda: len({*parent.children()} - {*killed}) == 2 and ready(url))


def in_use(settings: Settings) -> str:
    return str(ArtifactStore(settings.artifacts, ROUTER).in_use())


def write_pointer(settings: Settings, version: str) -> None:
    """Promote a version without the checks of `coe promote`."""
    draft = settings.artifacts / ROUTER / "draft"
    draft.write_text(version)
    draft.replace(settings.artifacts / ROUTER / POINTER)


def test_workers_that_crash_serve_the_last_good_declaration_until_it_is_repaired(
    settings: Settings, tmp_path: Path
) -> None:
    with serving(settings, log := tmp_path / "log") as (process, url):
        wait_until_all_ready(process, url)
        first = ready(url)["config"]
        declare(tmp_path, CHESS)
        good = load(settings.config, environ={}).digest
        wait_for(lambda: all_report(process, url, reload_error=False, config=good))
        wait_for(lambda: "chess" in kept(settings))
        wait_for(lambda: log.read_text().count("reloaded: config") == 2)
        settings.config.write_text("version: 1\nexperts: [")
        wait_for(lambda: all_report(process, url, reload_error=True, config=good))
        crash_workers(process, url)
        assert all_report(process, url, reload_error=True, config=good)
        assert metric(url, "coe_reload_failed") == 1
        assert metric(url, "coe_worker_crashes") == 2
        declare(tmp_path)
        wait_for(lambda: all_report(process, url, reload_error=False, config=first))
        assert metric(url, "coe_reload_failed") == 0
        wait_for(lambda: "chess" not in kept(settings))
        wait_for(lambda: log.read_text().count("reloaded: config") == 4)
        crash_workers(process, url)
        assert all_report(process, url, reload_error=False, config=first)
        settings.config.write_text(settings.config.read_text() + "log: {keep_days: 3}\n")  # needs a restart of all
        wait_for(lambda: all_report(process, url, reload_error=True, config=first))
        crash_workers(process, url)
        assert all_report(process, url, reload_error=True, config=first)
        process.terminate()
        assert process.wait(60) == 0
    assert not list(settings.home.glob("last-good/[!.]*"))
    said = log.read_text()
    assert "log.keep_days: a change of this needs a restart" in said
    assert "not reloaded; the last good state stays in service: experts.yaml:2" in said
    assert said.count("reloaded: config") == 4  # a start after a crash that changes nothing is not one


def test_workers_that_crash_serve_the_last_good_router_while_the_promoted_one_is_damaged(
    settings: Settings, built: Built, tmp_path: Path
) -> None:
    good = in_use(settings)
    publish(settings, built, "damaged below")
    damaged = in_use(settings)
    write_pointer(settings, good)
    note = settings.artifacts / ROUTER / damaged / "note"
    intact = note.read_text()
    with serving(settings, tmp_path / "log") as (process, url):
        wait_until_all_ready(process, url)
        wait_for(lambda: good in kept(settings))
        note.write_text("damage")
        write_pointer(settings, damaged)
        wait_for(lambda: all_report(process, url, reload_error=True, router=good))
        crash_workers(process, url)
        assert all_report(process, url, reload_error=True, router=good)
        assert metric(url, "coe_worker_crashes") == 2
        note.write_text(intact)
        write_pointer(settings, damaged)
        wait_for(lambda: all_report(process, url, reload_error=False, router=damaged))


def test_workers_that_crash_serve_a_copy_of_a_router_whose_files_were_damaged_in_use(
    settings: Settings, tmp_path: Path
) -> None:
    good = in_use(settings)
    with serving(settings, tmp_path / "log") as (process, url):
        wait_until_all_ready(process, url)
        wait_for(lambda: good in kept(settings))
        (settings.artifacts / ROUTER / good / "note").unlink()
        crash_workers(process, url)
        assert all_report(process, url, reload_error=True, router=good)
        assert metric(url, "coe_worker_crashes") == 2


def test_a_gateway_starts_with_the_files_in_use_whatever_it_served_before(settings: Settings, tmp_path: Path) -> None:
    with serving(settings, tmp_path / "log") as (process, url):
        wait_until_all_ready(process, url)
        wait_for(lambda: kept(settings))
        workers = psutil.Process(process.pid).children()
        process.kill()  # so that it deletes nothing
        psutil.wait_procs(workers, DEADLINE_SECONDS)
    settings.config.write_text("version: 1\nexperts: [")
    command = [sys.executable, "-m", "coe.cli", "serve", str(settings.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    assert done.returncode != 0
    assert "experts.yaml:2: " in done.stdout + done.stderr


def test_a_kept_state_shares_the_router_of_the_parent_process(settings: Settings, tmp_path: Path) -> None:
    version, declaration = in_use(settings), settings.config.read_text()
    state = KeptState(declaration, None, {}, {ROUTER: version}, settings.artifacts, tmp_path / "copies")
    preloaded = preload_router(settings)
    parent = PreloadedRouter(settings)
    settings.config.write_text("no yaml: [")
    started = load_active_state(settings, preloaded=preloaded, kept=state)
    assert started.router is preloaded.router
    assert (started.declaration, started.kept) == (declaration, state)
    assert parent.loaded is not None
    assert parent.read(settings, None, kept=state).router is parent.loaded.router
