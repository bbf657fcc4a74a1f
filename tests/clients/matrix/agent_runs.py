"""Runs a coding agent against an expert: a question, a tool loop, and a question during whose answer it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.matrix.agents import AGENTS, answer_in
from tests.clients.matrix.background import in_thread
from tests.clients.matrix.clients import Client, Feature
from tests.clients.matrix.runs import Run, in_flight_after, prompts
from tests.clients.matrix.scripted_server import ScriptedServer, Seen
from tests.clients.matrix.service import Service
from tests.clients.matrix.wire import Wire

AGENT_SECONDS = 120.0
_KEPT = ("PATH", "LANG", "TMPDIR")
"""Variables of this process that an agent may see."""


@dataclass(frozen=True, slots=True)
class _Session:
    """One agent against one expert. `home` is its home folder; it works in a folder below."""

    client: Client
    expert: str
    upstream: ScriptedServer
    home: Path

    @contextmanager
    def process(self, url: str, feature: Feature) -> Iterator[subprocess.Popen[bytes]]:
        """Run the agent in a process group of its own, which ends with the block."""
        work = self.home / "work"
        work.mkdir(parents=True, exist_ok=True)
        command = AGENTS[self.client.program](url, self.home, prompts(self.expert)[feature])
        environ = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environ |= command.environ | {"HOME": str(self.home)}
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        with subprocess.Popen(
            command.arguments, cwd=work, env=environ, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def own_requests(self, before: int) -> list[Seen]:
        """Return the requests since then, without those for titles, which have no tools."""
        return [one for one in self.upstream.seen[before:] if one.view.tools]


def run_agent(client: Client, expert: str, service: Service, upstream: ScriptedServer, home: Path) -> Run:
    """Run an agent three times. The first answers for `chat` and `stream`."""
    run, session = Run(), _Session(client, expert, upstream, home)
    wire = Wire(service.port)
    with in_thread(wire.running()), upstream.waiting_for(wire.pieces):
        run.reports["chat"] = _finish(run, session, f"http://127.0.0.1:{wire.port}", "chat")
    run.requests["stream"] = run.requests["chat"]
    run.reports["stream"] = {"pieces": wire.pieces()}
    run.reports["tools"] = _finish(run, session, service.url, "tools")
    run.reports["cancel"] = _interrupt(run, session, service)
    return run


def run_agent_loop(client: Client, expert: str, url: str, upstream: ScriptedServer, home: Path) -> Run:
    """Run an agent's tool loop alone, at any address of the API."""
    run = Run()
    run.reports["tools"] = _finish(run, _Session(client, expert, upstream, home), url, "tools")
    return run


def _finish(run: Run, session: _Session, url: str, feature: Feature) -> dict[str, Any]:
    """Run the agent to its end and return its answer."""
    before = len(session.upstream.seen)
    with session.process(url, feature) as process:
        try:
            output, errors = process.communicate(timeout=AGENT_SECONDS)
        except subprocess.TimeoutExpired:
            return {"error": f"no end within {AGENT_SECONDS:.0f} s"}
    run.requests[feature] = session.own_requests(before)
    if process.returncode != 0:
        last = (output + errors)[-2000:].decode(errors="replace")
        return {"error": f"exit status {process.returncode}: {last}"}
    return {"text": answer_in(output)}


def _interrupt(run: Run, session: _Session, service: Service) -> dict[str, Any]:
    """Stop the agent as Ctrl-C does, while the server holds back the rest of an answer."""
    before, deadline = len(session.upstream.seen), time.monotonic() + AGENT_SECONDS
    with session.process(service.url, "cancel") as process:
        while not any(one.stalled for one in session.own_requests(before)):
            if time.monotonic() > deadline or process.poll() is not None:
                return {"error": f"the agent ended before its answer began: exit status {process.poll()}"}
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        run.requests["cancel"] = session.own_requests(before)
        run.left_in_flight = in_flight_after(run, service)
    return {"pieces": ["sent by the server"]}
