"""The gateway in its own processes, between real clients and a real faulty server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import aiohttp
import orjson
import psutil

from coe.artifacts.store import POINTER
from coe.fleet.specs import free_port
from coe.records import open_log_and_feedback
from coe.records.record import LogQuery, RoutingRecord
from tests import forked
from tests.experts.faulty_server import FaultyServer

ROOT = Path(__file__).parent.parent.parent
SQLITE = "sqlite:///routing-log.sqlite"
_WRONG = ("silent", "stalls", "torn", "status:500", "text:noise", "truncated")
MODELS = ("good", *_WRONG, "slow-start", "drips", "floods", "late-end")
"""Return the fault of an expert by its name, in which - stands for :."""


@dataclass
class Served:
    port: int
    upstream: FaultyServer
    client: aiohttp.ClientSession
    process: asyncio.subprocess.Process
    folder: Path
    declared: dict[str, Any] = field(repr=False)
    settings: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def send_chat(
        self, model: str, *, stream: bool = False, headers: dict[str, str] | None = None
    ) -> aiohttp.client._RequestContextManager:
        return self.client.post(f"{self.url}/v1/chat/completions", json=chat(model, stream=stream), headers=headers)

    def raw(self, model: str, *, stream: bool = False) -> bytes:
        """The same request as bytes, for a client of one's own."""
        body = orjson.dumps(chat(model, stream=stream))
        head = ("POST /v1/chat/completions HTTP/1.1", "host: localhost", "content-type: application/json")
        return "\r\n".join((*head, f"content-length: {len(body)}", "", "")).encode() + body

    def declare(self, text: str | None = None, **changes: Any) -> None:
        """Write experts.yaml anew, as `text` or with these keys changed."""
        self.declared |= changes
        draft = self.folder / "draft"
        draft.write_text(orjson.dumps(self.declared).decode() if text is None else text)
        draft.replace(self.folder / "experts.yaml")

    def promote(self, version: str) -> None:
        """Move the router's pointer."""
        draft = self.folder / "draft"
        draft.write_text(version)
        pointer = self.folder / ".coe" / "artifacts" / "router" / POINTER
        pointer.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(pointer)

    async def kill(self) -> None:
        """End all its processes at once: the parent first, which would replace a worker that holds the port."""
        workers = self.workers
        for one in (psutil.Process(self.process.pid), *workers):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        await self.process.wait()
        await asyncio.to_thread(psutil.wait_procs, workers, timeout=60)

    async def start(self) -> None:
        """Start the gateway again, with the same arguments."""
        self.process = await _started(self.settings)
        await until_ready(self)

    async def ready(self) -> dict[str, Any]:
        """Return the JSON and the status of /health/ready."""
        async with self.client.get(f"{self.url}/health/ready") as response:
            return {**(await response.json()), "http": response.status}

    async def metric(self, name: str, *, key: str = "none") -> float:
        """Return the sum of all series of a metric that the API key may read."""
        async with self.client.get(f"{self.url}/metrics", headers={"x-api-key": key}) as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + " ", name + "{")))

    async def records(self, count: int) -> list[RoutingRecord]:
        """Wait until the log has `count` records, and return all."""
        log = open_log_and_feedback(self.declared["log"]["url"], base=self.folder / ".coe")[0]
        found, cursor = list[RoutingRecord](), ""
        while page := await log.read(LogQuery(after=cursor, limit=10_000)):
            found += page.records
            if page.cursor == cursor:
                if len(found) >= count:
                    break
                await asyncio.sleep(0.02)
            cursor = page.cursor
        await log.aclose()
        return found


def chat(model: str, *, stream: bool = False, text: str = "hi") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}


def declared_for(upstream: str, **changes: Any) -> dict[str, Any]:
    """One expert per fault, each named by it; the clients pin them. The one without a fault has prices."""
    experts = [
        {"name": model.replace(":", "-"), "model": model, "runtime": "external", "base_url": upstream}
        for model in MODELS
    ]
    for expert in experts:
        if expert["name"] == "good":
            expert["prices"] = {"input": 1.0, "output": 1.0}
    return {
        "version": 1,
        "categories": [{"name": name, "description": name} for name in ("code", "art", "general")],
        "experts": experts,
        "assignment": {"general": "good"},
        "policy": {"max_attempts": 1},
        "log": {"url": SQLITE},
        **changes,
    }


@asynccontextmanager
async def serving(
    folder: Path, *, environ: dict[str, str] | None = None, stderr: IO[bytes] | None = None, **changes: Any
) -> AsyncIterator[Served]:
    """Serve until the block ends; `changes` are keys of experts.yaml, `environ` settings."""
    upstream = FaultyServer()
    runner = await upstream.start()
    port = free_port()
    declared = declared_for(upstream.url, **changes)
    config = folder / "experts.yaml"
    config.write_bytes(orjson.dumps(declared))
    settings = {"COE_CONFIG": str(config), "COE_PORT": str(port), **(environ or {})}
    client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
    process = await _started(settings, stderr)
    served = Served(port, upstream, client, process, folder, declared, settings)
    try:
        async with client:
            await until_ready(served)
            yield served
    finally:
        if served.process.returncode is None:
            served.process.terminate()
            try:
                await asyncio.wait_for(served.process.wait(), 10)
            except TimeoutError:
                await served.kill()
        await runner.cleanup()


async def _started(settings: dict[str, str], stderr: IO[bytes] | None = None) -> asyncio.subprocess.Process:
    command = forked.python("tests.gateway.words_server")
    return await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=os.environ | settings, stderr=stderr)


async def until_ready(served: Served) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                if (await served.ready())["http"] == 200:
                    return
            except aiohttp.ClientConnectionError:
                assert served.process.returncode is None, f"the gateway ended at its start: {served.process.returncode}"
                await asyncio.sleep(0.02)
