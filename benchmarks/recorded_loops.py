"""Changes of expert inside tool loops, over the requests that real clients send.

    make test-clients     # installs the clients and trains the router, once
    python -m benchmarks.recorded_loops --recordings FILE [--loops 1000] [--json FILE]

Without the file, each client of tests/clients/matrix first runs a loop of three tool steps for each of two tasks,
through a gateway, and its requests and the answers are written there. They contain the clients' own prompts,
so the file stays outside of the repository.

A loop is a recorded loop with another task, a prompt of boilerplate_prompts.jsonl. Its tools return prompts of other
categories, and its ids are its own. `coe up` with the trained router serves the loops, 50 at a time in turn, with an
expert for each category. The rules that favour a change are on: no sticky margin, half of the requests explore, and in
every fourth loop the first choice fails in the first step and then recovers. The figure is the number of loops in which
two requests were answered by different experts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx
from aiohttp import web

from tests.clients.matrix import environment
from tests.clients.matrix.agent_runs import run_agent_loop
from tests.clients.matrix.background import in_thread
from tests.clients.matrix.clients import CLIENTS, Client
from tests.clients.matrix.runs import PROGRAMS, prompts, run_program
from tests.clients.matrix.script import STEPS, code_of
from tests.clients.matrix.scripted_server import ScriptedServer
from tests.clients.matrix.service import KEY, NATIVE, TRANSLATED, Service, declaration, running

PROMPTS = Path(__file__).with_name("boilerplate_prompts.jsonl")
TOGETHER = 50
"""Loops that take turns."""
FAILING = 4
"""One loop in so many fails in its first step."""
_SENT = re.compile(r"x-(?!api-key|stainless|coe).*|session.id|conversation.id|openai-.*|anthropic-.*|user-agent")
"""Headers of clients that are sent again."""
_ID = re.compile(r"\b(?:resp|msg|rs|fc|call|toolu|chatcmpl)_\d+\b")
_UUID = re.compile(r"(?<![0-9a-f])([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-)[0-9a-f]{12}\b")
_OF_CONNECTION = ("host", "content-length", "connection", "transfer-encoding", "accept-encoding")
Step = dict[str, Any]
"""A recorded request: path, headers and body, and the answer with its media type."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--loops", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.recordings.exists():
        lines = [json.dumps(one) for one in recorded()]
        options.recordings.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    recordings = [json.loads(line) for line in options.recordings.read_text(encoding="utf-8").splitlines()]
    text = json.dumps(switches(loops_of(recordings, options.loops)), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text, encoding="utf-8")


def recorded() -> Iterator[dict[str, Any]]:
    """Yield the loop of each client that is installed, for each task: client, task and steps."""
    shutil.copytree(PROGRAMS, environment.NPM / "programs", dirs_exist_ok=True)
    upstream = ScriptedServer()
    with tempfile.TemporaryDirectory() as folder, in_thread(upstream.running()):
        declared = declaration(upstream.root)
        for expert in declared["experts"]:
            expert["apis"] = declared["experts"][0]["apis"]
        Path(folder, "service").mkdir()
        with running(Path(folder, "service"), declared) as service:
            recorder = Recorder(service)
            with in_thread(recorder.running()):
                for client in CLIENTS:
                    if reason := environment.unavailable(client.index):
                        print(f"{client.name}: not recorded: {reason}")
                        continue
                    for expert in (NATIVE, TRANSLATED):
                        steps = _steps(client, expert, recorder, upstream, Path(folder, client.program))
                        print(f"{client.name}: {len(steps)} requests", flush=True)
                        name = f"{client.name}, {client.api}"
                        yield {"client": name, "task": prompts(expert)["tools"], "steps": steps}


def _steps(client: Client, expert: str, recorder: Recorder, upstream: ScriptedServer, home: Path) -> list[Step]:
    recorder.steps.clear()
    if client.is_agent:
        run = run_agent_loop(client, expert, recorder.service.url, upstream, home)
    else:
        run = run_program(client, expert, recorder.service, upstream)
    if error := run.reports.get("tools", {"error": run.errors}).get("error"):
        raise SystemExit(f"{client.name}: {error}")
    steps = [step for step in recorder.steps if json.loads(step["body"]).get("tools")]
    if len(steps) <= STEPS:
        raise SystemExit(f"{client.name}: {len(steps)} requests in place of {STEPS + 1}")
    return steps


class Recorder:
    """A proxy in front of the gateway that keeps each request that was answered, and its answer. `service` is the
    gateway at the proxy's address."""

    def __init__(self, gateway: Service) -> None:
        self.steps: list[Step] = []
        self.service = self._gateway = gateway

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen on a free port."""
        async with aiohttp.ClientSession(auto_decompress=False) as self._session, serving(self._relay) as root:
            self.service = Service(root, self._gateway.log)
            yield

    async def _relay(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_CONNECTION}
        url, answer = f"{self._gateway.url}{request.path_qs}", bytearray()
        async with self._session.request(request.method, url, headers=headers, data=body) as found:
            response = web.StreamResponse(status=found.status, headers={"content-type": found.headers["content-type"]})
            with suppress(ConnectionError):  # clients leave answers that they cancel
                await response.prepare(request)
                async for chunk in found.content.iter_any():
                    answer += chunk
                    await response.write(chunk)
                await response.write_eof()
        if found.status == 200 and request.method == "POST":
            sent = {name.lower(): value for name, value in headers.items() if _SENT.fullmatch(name.lower())}
            kind = found.content_type
            step = {"path": request.path_qs, "headers": sent, "body": body.decode(), "type": kind}
            self.steps.append(step | {"answer": answer.decode()})
        return response


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve every path on a free port; yield the address."""
    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Loop:
    """A recorded loop with a task of its own. `experts` and `reasons` are what the gateway reported at each step."""

    client: str
    steps: list[Step]
    fails: bool
    experts: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def loops_of(recordings: Sequence[dict[str, Any]], count: int) -> list[Loop]:
    """Return so many loops: the recordings in turn, each with the next task."""
    rng = random.Random(0)
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    loops = []
    for number in range(count):
        recording, task = recordings[number % len(recordings)], rows[number % len(rows)]
        others = [row["prompt"] for row in rows if row["category"] != task["category"]]
        texts = {recording["task"]: task["prompt"]}
        texts |= {code_of(step): rng.choice(others) for step in range(1, STEPS + 1)}
        if not any(_inner(recording["task"]) in step["body"] for step in recording["steps"]):
            raise SystemExit(f"{recording['client']}: its requests do not have the task")
        steps = [_with(step, texts, number) for step in recording["steps"]]
        loops.append(Loop(recording["client"], steps, number % FAILING == 0))
    return loops


def _with(step: Step, texts: dict[str, str], number: int) -> Step:
    """Return the step with other texts, and with ids that only loop `number` has."""

    def changed(text: str, inner: bool) -> str:
        for old, new in texts.items():
            text = text.replace(_inner(old) if inner else old, _inner(new) if inner else new)
        text = _ID.sub(lambda found: f"{found[0]}{number:06d}", text)
        return _UUID.sub(lambda found: f"{found[1]}{number:012x}", text)

    headers = {name: changed(value, False) for name, value in step["headers"].items()}
    return step | {"headers": headers, "body": changed(step["body"], True), "answer": changed(step["answer"], True)}


def _inner(text: str) -> str:
    """The text inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Replayed:
    """A server that returns the recorded answer of the request that is sent next. `fails` makes it refuse one."""

    def __init__(self) -> None:
        self.step: Step = {}
        self.fails = False
        self.root = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen on a free port; `root` is the address."""
        async with serving(self._answer) as self.root:
            yield

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.method != "POST":  # requests of the gateway's health checks
            return web.Response(status=404)
        if self.fails:
            self.fails = False
            return web.json_response({"error": {"message": "down"}}, status=503)
        return web.Response(body=self.step["answer"].encode(), content_type=self.step["type"])


def switches(loops: Sequence[Loop]) -> dict[str, Any]:
    """Send all loops, and count those that changed their expert."""
    server = Replayed()
    with tempfile.TemporaryDirectory() as folder, in_thread(server.running()):
        declared = _declaration(server.root)
        with running(Path(folder), declared) as service, httpx.Client(base_url=service.url, timeout=60) as client:
            for first in range(0, len(loops), TOGETHER):
                batch = loops[first : first + TOGETHER]
                for number in range(max(len(loop.steps) for loop in batch)):
                    for loop in batch:
                        if number < len(loop.steps):
                            server.fails = loop.fails and number == 0
                            _send(client, server, loop, loop.steps[number])
    return _report(loops)


def _declaration(root: str) -> dict[str, Any]:
    declared = declaration(root)
    names = [one["name"] for one in declared["categories"]]
    expert = declared["experts"][0]
    return declared | {
        "experts": [expert | {"name": f"{name}-expert", "base_url": f"{root}/{name}/v1"} for name in names],
        "assignment": {name: f"{name}-expert" for name in names},
        "policy": {"sticky_margin": 0.0, "exploration": {"rate": 0.5, "max_quality_loss": 1.0}},
    }


def _send(client: httpx.Client, server: Replayed, loop: Loop, step: Step) -> None:
    server.step = step
    headers = {**step["headers"], "authorization": f"Bearer {KEY}", "content-type": "application/json"}
    response = client.post(step["path"], content=step["body"].encode(), headers=headers)
    if response.status_code != 200:
        raise SystemExit(f"{loop.client}: HTTP {response.status_code}: {response.text[:500]}")
    loop.experts.append(response.headers["x-coe-expert"])
    loop.reasons.append(response.headers["x-coe-reason"])


def _report(loops: Sequence[Loop]) -> dict[str, Any]:
    switched = [loop for loop in loops if len(set(loop.experts)) > 1]
    first = Counter(loop.reasons[0] for loop in loops)
    return {
        "loops": len(loops),
        "requests": sum(len(loop.experts) for loop in loops),
        "switched": len(switched),
        "first_reasons": dict(first),
        "later_reasons": dict(Counter(reason for loop in loops for reason in loop.reasons[1:])),
        "loops_by_client": dict(Counter(loop.client for loop in loops)),
        "switched_by_client": dict(Counter(loop.client for loop in switched)),
        "examples": [[loop.client, loop.experts, loop.reasons] for loop in switched[:5]],
    }


if __name__ == "__main__":
    main()
