"""Lists the files that one routed chat runs through, by step, and times a request in process.

    .venv/bin/python -m benchmarks.request_walk --home FOLDER [--repeat 2000] [--turns 1 5 20 50]

FOLDER is a state folder with a router (trained there first where it has none). The gateway runs in this process with
the experts.yaml of this repository and a key with limits; a server in another process stands in for every expert. A
profile hook records each function call of the request's own task. Lines are counted over whole files, and over the
called functions alone. `--repeat` then measures requests over 400 starter prompts in turn, without the hook: the
processor time of the event loop's thread, and of all other threads, in microseconds a request; once for each number of
`--turns` of the user, of which the prompt is the newest, and for an agent that has called tools ten times. Beside other
work the best round is the most reliable figure, and two states should be measured in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType
from typing import Any

import orjson
import uvloop
from starlette.applications import Starlette

from benchmarks.harness import ACCESS, ANSWER, KEY, ROOT, STARTER, chats, read_prompts, trained
from coe.settings import Settings
from gateway.app import create_app
from gateway.main import open_services

PACKAGES = tuple(str(ROOT / name) + os.sep for name in ("coe", "gateway", "routers"))
PROMPTS = 400
"""Starter prompts that are sent in turn; a round sends each once. An eighth is not English."""
_in_request: ContextVar[bool] = ContextVar("in_request", default=False)


class Walk:
    """Records which code runs for a request, by the step in which it was called first."""

    def __init__(self) -> None:
        self.calls: dict[CodeType, str] = {}
        self._step = "admit"

    def hook(self, frame: FrameType, event: str, _: Any) -> None:
        """Called by the interpreter for every call and return."""
        if event != "call" or not _in_request.get() or not frame.f_code.co_filename.startswith(PACKAGES):
            return
        if frame.f_code.co_name == "step" and frame.f_code.co_filename.endswith("gateway/request/trace.py"):
            self._step = frame.f_locals["name"]
        elif frame.f_code.co_name == "observe":
            self._step = "record"
        self.calls.setdefault(frame.f_code, self._step)

    def report(self) -> None:
        """Print the files by step and their sums."""
        steps: dict[str, str] = {}
        for code, step in self.calls.items():
            steps.setdefault(code.co_filename, step)
        shown, total = "", 0
        for file, step in steps.items():
            lines = len(Path(file).read_text(encoding="utf-8").splitlines())
            total += lines
            print(f"{step if step != shown else '':10}{Path(file).relative_to(ROOT)!s:48}{lines:5}")
            shown = step
        called = sum(len({line for _, _, line in code.co_lines() if line}) for code in self.calls)
        print(f"{len(steps)} files, {total} lines; {len(self.calls)} functions, {called} lines of code in them")


@contextmanager
def expert_server() -> Iterator[str]:
    """A server in another process that gives the same answer to every chat."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER)
            self.wfile.write(head + ANSWER.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        process.terminate()


def agent_steps(prompts: list[str]) -> list[bytes]:
    """One chat for each prompt of an agent with 8 kB of instructions, 20 tools and ten results of them."""
    schema = {"type": "object", "properties": {"path": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": f"tool_{n}", "parameters": schema}} for n in range(20)]
    instructions = "You work in the repository of the user. Read before you write, and run the tests. " * 100
    steps: list[dict[str, Any]] = []
    for n in range(10):
        call = {"id": f"call_{n}", "type": "function", "function": {"name": f"tool_{n}", "arguments": "{}"}}
        steps += [{"role": "assistant", "content": None, "tool_calls": [call]}]
        steps += [{"role": "tool", "tool_call_id": f"call_{n}", "content": "def f(x):\n    return x + 1\n" * 20}]
    first = {"role": "system", "content": instructions}
    chats = [[first, {"role": "user", "content": prompt}, *steps] for prompt in prompts]
    return [orjson.dumps({"model": "auto", "messages": messages, "tools": tools}) for messages in chats]


async def serve_one(app: Starlette, body: bytes) -> None:
    """Send one chat to the application, as its server would."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {KEY}".encode()),
        ],
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    statuses = []

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    await app(scope, receive, send)
    assert statuses[0] == 200, statuses


async def run(settings: Settings, repeat: int, turns: list[int]) -> None:
    app = create_app(partial(open_services, settings))
    prompts = read_prompts(STARTER)[:PROMPTS]
    async with app.router.lifespan_context(app):
        first, *others = chats(prompts)
        for body in others:  # sent again, the first one would count as feedback
            await serve_one(app, body)
        walk = Walk()
        _in_request.set(True)
        sys.setprofile(walk.hook)
        await serve_one(app, first)
        sys.setprofile(None)
        _in_request.set(False)
        walk.report()
        gc.freeze()
        loads = {f"{number} turns": chats(prompts, turns=number) for number in turns} | {"agent": agent_steps(prompts)}
        for name, bodies in loads.items() if repeat else ():
            await measure(app, name, bodies, rounds=repeat // PROMPTS)


async def measure(app: Starlette, name: str, bodies: list[bytes], *, rounds: int) -> None:
    """Print the processor time of a request: of the event loop's thread, and of all others."""
    own, others = list[float](), list[float]()
    for _ in range(rounds):
        process, thread = time.process_time(), time.thread_time()
        for body in bodies:
            await serve_one(app, body)
        own.append((time.thread_time() - thread) / len(bodies) * 1e6)
        others.append((time.process_time() - process) / len(bodies) * 1e6 - own[-1])
    print(
        f"{name:10}{statistics.median(own):8.1f} us of the event loop's thread a request (best {min(own):.1f}), ",
        end="",
    )
    print(f"{statistics.median(others):.1f} us of other threads (best {min(others):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=0)
    parser.add_argument("--turns", type=int, nargs="*", default=[1, 5, 20, 50])
    options = parser.parse_args()
    trained(options.home)
    with expert_server() as url, TemporaryDirectory() as folder:
        (Path(folder) / "artifacts").symlink_to((options.home / "artifacts").absolute())
        declared = (ROOT / "experts.yaml").read_text(encoding="utf-8")
        config = Path(folder) / "experts.yaml"
        declared = re.sub(r"(?m)^access:\n", ACCESS, declared)
        served = f"runtime: external\n    base_url: {url}\n    capabilities: [tools]"
        declared = re.sub(r"(?m)^    context_length:.*\n", "", declared)
        config.write_text(declared.replace("runtime: transformers", f"{served}\n    context_length: 100000"))
        environ = {"COE_HOME": folder}
        uvloop.run(run(Settings.read(environ, config=config), options.repeat, options.turns))


if __name__ == "__main__":
    main()
