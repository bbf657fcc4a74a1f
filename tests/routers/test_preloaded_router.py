"""Forked workers share the router that their parent loaded, as long as it is in use."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from coe.artifacts.active_state import load_active_state, preload_router
from coe.artifacts.manifest import ROUTER
from coe.artifacts.store import ArtifactStore
from coe.fleet.specs import free_port
from coe.settings import Settings
from tests.routers.conftest import WORDS

TEXTS = ["bake the stew", "a star that a telescope sees", "ledger and dividend", "none of these words"]
DECLARED = """\
version: 1
categories: [%s{name: general, description: g}]
experts: [{name: small, model: m, runtime: external, base_url: 'http://127.0.0.1:9/v1'}]
assignment: {general: small}
router: {encoder_timeout: 10}
"""
CHESS = "{name: chess, description: chess, examples: [knight takes rook, castle the king]}, "
Built = tuple[Path, dict[str, Any], list[Any]]


@pytest.fixture
def settings(tmp_path: Path, built: Built) -> Settings:
    settings = declare(tmp_path)
    publish(settings, built)
    return settings


def declare(folder: Path, more: str = "") -> Settings:
    names = "".join(f"{{name: {name}, description: d}}, " for name in WORDS)
    (folder / "experts.yaml").write_text(DECLARED % (names + more))
    return replace(Settings.read({}, config=folder / "experts.yaml"), workers=2)


def publish(settings: Settings, built: Built, note: str = "") -> None:
    store = ArtifactStore(settings.artifacts, ROUTER)
    with store.draft() as draft:
        shutil.copytree(built[0], draft, dirs_exist_ok=True)
        (draft / "note").write_text(note)
        version = store.publish(draft, categories=(*WORDS, "general"), data=note, metrics={}).manifest.version
    store.promote(version, by="train")


def test_a_worker_uses_it_only_while_its_artifact_and_categories_are_in_use(settings: Settings, built: Built) -> None:
    preloaded = preload_router(settings)
    assert load_active_state(settings, preloaded=preloaded).router is preloaded.router
    added = load_active_state(declare(settings.config.parent, CHESS), preloaded=preloaded)
    assert added.router is not preloaded.router
    assert "chess" in added.router.categories
    declare(settings.config.parent)
    publish(settings, built, "another version")
    promoted = load_active_state(settings, preloaded=preloaded)
    assert promoted.router is not preloaded.router
    assert load_active_state(settings, promoted, preloaded=preloaded).router is promoted.router


@contextmanager
def serving(settings: Settings, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    environ = os.environ | {"COE_WORKERS": "2", "COE_PORT": str(port)}
    command = [sys.executable, "-m", "coe.cli", "serve", str(settings.config)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def category_of(url: str, text: str) -> str:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(f"{url}/v1/route", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return str(json.load(response)["category"])


def best_category(settings: Settings, text: str) -> str:
    router = load_active_state(settings).router
    (prediction,) = router.predict([text])
    return router.categories[prediction.best]


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the gateway ended at its start"
        with suppress(OSError), urllib.request.urlopen(f"{url}/health/ready", timeout=60) as response:
            if response.status == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the gateway is not ready after 120 s")


def test_two_workers_classify_with_it_and_end_without_an_error(settings: Settings, tmp_path: Path) -> None:
    expected = {text: best_category(settings, text) for text in TEXTS}
    with serving(settings, log := tmp_path / "log") as (process, url):
        wait_until_ready(process, url)
        assert len(psutil.Process(process.pid).children()) == 2
        for _ in range(8):  # either worker may accept a connection
            assert {text: category_of(url, text) for text in TEXTS} == expected
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    lines = log.read_text().splitlines()  # none from a worker that was stopped while it started
    assert [line for line in lines if "the fast heads use" not in line] == []
