"""Runs a client's program once against an expert and keeps what it reported and what the server saw."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.clients.matrix import environment
from tests.clients.matrix.clients import Client
from tests.clients.matrix.script import AT_LENGTH, CODE, IN_STEPS, LAW
from tests.clients.matrix.scripted_server import ScriptedServer, Seen
from tests.clients.matrix.service import KEY, NATIVE, TRANSLATED, Service

PROGRAMS = Path(__file__).with_name("programs")
SUBJECTS = {NATIVE: CODE, TRANSLATED: LAW}
"""The question that the router sends to an expert."""
NO_TELEMETRY = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LANGSMITH_TRACING": "false",
    "AI_SDK_LOG_WARNINGS": "false",
}
"""Variables by which clients send no request to elsewhere."""
PROGRAM_SECONDS = 180.0
CLOSE_SECONDS = 60.0
"""Time within which a cancellation must have reached the server."""


@dataclass(slots=True)
class Run:
    """The client's reports and the server's observations, by feature, and the client's error output."""

    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: dict[str, list[Seen]] = field(default_factory=dict)
    left_in_flight: float = 0.0
    """Requests at the gateway some seconds after the cancellation."""
    errors: str = ""


def by_feature(seen: Sequence[Seen]) -> dict[str, list[Seen]]:
    """Sort a program's requests by the marker in their prompt; a plain question is streamed or not."""
    found: dict[str, list[Seen]] = {"chat": [], "stream": [], "tools": [], "cancel": []}
    for one in seen:
        if one.turn.stalls:
            found["cancel"].append(one)
        elif IN_STEPS in one.view.text:
            found["tools"].append(one)
        else:
            found["stream" if one.body.get("stream") else "chat"].append(one)
    return found


def prompts(expert: str) -> dict[str, str]:
    """Return the prompt of each feature."""
    subject = SUBJECTS[expert]
    return {
        "chat": subject,
        "stream": subject,
        "tools": f"{subject} {IN_STEPS}",
        "cancel": f"{subject} {AT_LENGTH}",
    }


def run_program(client: Client, expert: str, service: Service, upstream: ScriptedServer) -> Run:
    """Run a program to its end. It waits after the last feature, so that the effects of a cancellation are visible."""
    run, before = Run(), len(upstream.seen)
    environ = os.environ | NO_TELEMETRY
    environ |= {
        "COE_PROVIDER": client.provider,
        "COE_URL": service.url,
        "COE_KEY": KEY,
        "COE_PROMPTS": orjson.dumps(prompts(expert)).decode(),
    }
    pipe = subprocess.PIPE
    with subprocess.Popen(_command(client), env=environ, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        timer = threading.Timer(PROGRAM_SECONDS, process.kill)
        errors: list[bytes] = []
        reader = threading.Thread(target=lambda pipe: errors.append(pipe.read()), args=(process.stderr,))
        timer.start()
        reader.start()
        try:
            for line in process.stdout:
                report = orjson.loads(line)
                run.reports[report.pop("feature")] = report
                if len(run.reports) == len(client.features):
                    break
            run.requests = by_feature(upstream.seen[before:])
            run.left_in_flight = in_flight_after(run, service)
            process.stdin.close()
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            reader.join()
    run.errors = b"".join(errors).decode(errors="replace")
    return run


def in_flight_after(run: Run, service: Service) -> float:
    """Wait until every stalled stream is closed and nothing is in flight; return what is after the time limit."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while (left := service.in_flight()) or not all(one.closed for one in run.requests["cancel"]):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _command(client: Client) -> tuple[str, ...]:
    if client.index == "pypi":
        return str(environment.PYTHON), str(PROGRAMS / client.program)
    return str(environment.node()), str(environment.NPM / "programs" / client.program)
