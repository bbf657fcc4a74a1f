"""The gateway as `coe up` runs it, with a trained router, in front of the scripted server."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from ruamel.yaml import YAML

from coe.fleet.specs import free_port
from tests.clients.matrix.environment import ROOT, trained_router

KEY = "sk-of-the-clients-under-test"
NATIVE, TRANSLATED, GENERAL = "coder", "lawyer", "generalist"
"""Experts: one whose server speaks every API, one whose server speaks Chat Completions alone, and one for the rest."""
START_SECONDS = 180.0
_IN_FLIGHT = re.compile(r"^coe_(?:requests|expert)_in_flight(?:\{[^}]*\})? ([0-9.]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Service:
    """A running gateway: its address without /v1, and the file with the output of `coe up`."""

    url: str
    log: Path

    @property
    def port(self) -> int:
        """Port of the gateway."""
        return int(self.url.rpartition(":")[2])

    def in_flight(self) -> float:
        """Return the requests in progress at the gateway and at its experts."""
        request = urllib.request.Request(f"{self.url}/metrics", headers={"authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=10) as page:
            counts = [float(count) for count in _IN_FLIGHT.findall(page.read().decode())]
        assert len(counts) >= 2, "the metrics have no counts of requests in flight"
        return sum(counts)


@contextmanager
def running(folder: Path, declared: Mapping[str, Any]) -> Iterator[Service]:
    """Run `coe up` with this experts.yaml in a folder until the block ends."""
    config, log, port = folder / "experts.yaml", folder / "up.log", free_port()
    config.write_bytes(orjson.dumps(declared))
    shutil.copytree(trained_router(), folder / "home" / "artifacts")
    environ = os.environ | {"COE_HOME": str(folder / "home"), "COE_CHECK_EXPERTS": "0"}
    command = (sys.executable, "-m", "coe.cli", "up", "--config", str(config), "--port", str(port))
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, env=environ, stdout=output, stderr=output) as up:
        try:
            service = Service(f"http://127.0.0.1:{port}", log)
            _until_ready(service, up)
            yield service
        finally:
            up.terminate()
            try:
                up.wait(30)
            except subprocess.TimeoutExpired:
                up.kill()


def declaration(upstream: str) -> dict[str, Any]:
    """Return experts.yaml: the shipped categories, for which the router is trained, and the three experts.

    `upstream` is the scripted server's address.
    """
    shipped = YAML(typ="safe").load(ROOT / "experts.yaml")
    common = {"runtime": "external", "context_length": 200_000, "capabilities": ["tools"]}
    all_apis = ["chat", "completions", "responses", "messages"]
    scopes = ["chat", "route", "feedback", "admin"]  # admin: for /metrics
    apis = {NATIVE: all_apis, TRANSLATED: ["chat"], GENERAL: all_apis}
    return {
        "version": 1,
        "categories": shipped["categories"],
        "experts": [
            {"name": name, "model": f"{name}-model", "base_url": f"{upstream}/{name}/v1", "apis": speaks, **common}
            for name, speaks in apis.items()
        ],
        "assignment": {"code": NATIVE, "law": TRANSLATED, "general": GENERAL},
        "aliases": {"gpt-*": "auto", "claude-*": "auto"},
        "policy": {"max_attempts": 1},
        "access": {"keys": [{"name": "clients", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "scopes": scopes}]},
    }


def _until_ready(service: Service, up: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while up.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{service.url}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the gateway did not become ready:\n{service.log.read_text()}")
