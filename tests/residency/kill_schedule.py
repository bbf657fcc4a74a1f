"""Requests for experts on two devices while processes are killed.

`coe up`, the gateway, its processes and the servers get SIGKILL at random moments, drawn from a seed; `coe up` is
started again afterwards. The servers are fake and light, all else is the real thing. What must hold:

- every request ends: with an answer, with an error in OpenAI's shape, or with its connection if the gateway is killed;
- a killed `coe up` leaves no process behind;
- in the end every expert answers, nothing waits or is in flight, and the servers fit on their devices.
"""

from __future__ import annotations

import asyncio
import os
import random
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil

from coe.fleet.residency.client import fetch_report
from coe.fleet.specs import free_port
from coe.settings import Settings
from tests import forked
from tests.fleet.fake_fleet import FAKE_SERVER, processes_logging_to

ROOT = Path(__file__).parent.parent.parent
NAMES = ("a", "b", "c", "d")
KINDS = ("server", "server", "supervisor", "gateway", "up")
CLIENTS = 8
PACE = (0.2, 2.5)
"""Seconds between two kills, drawn uniformly."""
WAIT_TIMEOUT = 6.0
LONGEST_ANSWER = 60.0
"""Seconds after which a request counts as hanging, on a busy machine."""
START = 120.0
FAKE_VLLM = """#!{python}
import os, runpy, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
port = sys.argv[sys.argv.index("--port") + 1]
sys.argv = ["fake_server.py", port, "ok", {pids!r}]
runpy.run_path({server!r}, run_name="__main__")
"""


@dataclass
class Report:
    """Outcomes of requests, kills by victim, and what went wrong."""

    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Service:
    """`coe up` with fake servers in `folder`; it can be started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.up: subprocess.Popen[bytes] | None = None
        self._declare()

    def _declare(self) -> None:
        server = self.folder / "bin" / "vllm"
        server.parent.mkdir()
        names = {"python": sys.executable, "pids": str(self.folder / "pids"), "server": str(FAKE_SERVER)}
        server.write_text(FAKE_VLLM.format(**names))
        server.chmod(server.stat().st_mode | stat.S_IXUSR)
        experts: list[dict[str, Any]] = [
            {"name": name, "model": f"fake/{name}", "runtime": "vllm", "memory_gb": 10, "device": f"gpu{number % 2}"}
            for number, name in enumerate(NAMES)
        ]
        experts[0] |= {"sleep_level": 1, "options": {"enable-sleep-mode": True}}
        devices = [{"name": f"gpu{number}", "memory_gb": 11, "gpus": [number]} for number in range(2)]
        declared = {
            "version": 1,
            "categories": [{"name": name, "description": name} for name in ("code", "art", "general")],
            "experts": experts,
            "assignment": {"general": NAMES[0]},
            "residency": {"devices": devices, "sleep_memory_gb": 20, "max_wait": 0.5, "wait_timeout": WAIT_TIMEOUT},
        }
        (self.folder / "experts.yaml").write_bytes(orjson.dumps(declared))

    async def start(self) -> None:
        """Starts `coe up` and waits until the gateway answers."""
        command = forked.python("tests.vllm.host", str(self.folder / "experts.yaml"), str(self.port))
        environ = os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "COE_CHECK_EXPERTS": "0"}
        with (self.folder / "up.log").open("ab") as log:
            self.up = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=log, stderr=log)  # noqa: ASYNC220  it takes a millisecond
        async with asyncio.timeout(START), aiohttp.ClientSession() as session:
            while True:
                assert self.up.poll() is None, f"coe up ended:\n{(self.folder / 'up.log').read_text()}"
                with suppress(aiohttp.ClientError):
                    async with session.get(f"{self.url}/health/ready") as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """Return the living processes that `coe up` started, also those with another parent now."""
        return processes_logging_to(self.folder / ".coe" / "logs")

    def victims(self, kind: str) -> list[psutil.Process]:
        """Processes of a kind: server, gateway (any of its processes), or supervisor of one of them."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                line = " ".join(process.cmdline())
                of = "supervisor" if "supervisor.py" in line else "gateway" if "words_server" in line else "server"
                if of == kind:
                    found.append(process)
        return found

    async def none_left(self) -> list[str]:
        """The processes that are still there after a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while self.processes():
                    await asyncio.sleep(0.05)
        return [" ".join(process.cmdline()) for process in self.processes()]

    async def report(self) -> list[dict[str, Any]]:
        """Return what `coe status` shows of the devices."""
        settings = Settings.read({}, config=self.folder / "experts.yaml")
        return await fetch_report(settings.residency_link.readlink())

    async def stop(self) -> None:
        if self.up is not None and self.up.poll() is None:
            self.up.terminate()
            await asyncio.to_thread(self.up.wait, 60)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Service]:
    service = Service(folder)
    try:
        await service.start()
        yield service
    finally:
        await service.stop()
        for process in service.processes():
            process.kill()


async def send_chat(session: aiohttp.ClientSession, url: str, expert: str) -> str:
    """One request; returns its outcome. Raises AssertionError for an answer that is neither one nor an error."""
    body = {"model": expert, "messages": [{"role": "user", "content": "code"}]}
    try:
        async with asyncio.timeout(LONGEST_ANSWER), session.post(f"{url}/v1/chat/completions", json=body) as response:
            found = orjson.loads(await response.read())
    except aiohttp.ClientConnectorError:
        return "not listening"
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
        return "disconnected"
    if response.status == 200:
        assert found["choices"], found
        return "answered"
    assert found["error"]["message"], found
    return str(found["error"]["code"])


async def client(service: Service, report: Report, *, rng: random.Random, stop: asyncio.Event) -> None:
    async with aiohttp.ClientSession() as session:
        while not stop.is_set():
            try:
                outcome = await send_chat(session, service.url, rng.choice(NAMES))
            except TimeoutError:
                outcome = "hangs"
            except (AssertionError, KeyError, ValueError) as error:
                outcome = f"wrong: {error!r}"
            report.outcomes[outcome] += 1
            if outcome == "hangs" or outcome.startswith("wrong"):
                report.problems.append(outcome)
            await asyncio.sleep(0.05 if outcome == "answered" else 0.2)


async def kill(service: Service, report: Report, kind: str, rng: random.Random) -> None:
    """Waits for a process of this kind and kills it. Starts `coe up` again after its last process has ended.

    There may be no gateway at first, since it may just have died with its supervisor.
    """
    if kind == "up":
        assert service.up is not None
        service.up.kill()
        service.up.wait()
        if left := await service.none_left():
            report.problems.append(f"left after the death of coe up: {left}")
        await service.start()
    else:
        async with asyncio.timeout(START):
            while not (victims := service.victims(kind)):
                await asyncio.sleep(0.05)
        with suppress(psutil.NoSuchProcess):
            rng.choice(victims).kill()
    report.kills[kind] += 1


async def settle(service: Service, report: Report) -> None:
    """Every expert answers again, and the scheduler's books are right."""
    async with aiohttp.ClientSession() as session:
        for name in NAMES:
            try:
                async with asyncio.timeout(LONGEST_ANSWER):
                    while await send_chat(session, service.url, name) != "answered":
                        await asyncio.sleep(0.2)
            except TimeoutError:
                report.problems.append(f"{name} does not answer any more")
    devices, servers = await without_requests(service)
    for server in servers:
        if server["waiting"] or server["in_flight"]:
            report.problems.append(f"requests left: {server}")
    if sorted(name for server in servers for name in server["experts"]) != sorted(NAMES):
        report.problems.append(f"an expert is on no device, or on two: {devices}")
    loaded = [server for server in servers if server["tier"] != "stopped"]
    over = any(device["occupied_gb"] > device["memory_gb"] for device in devices)
    if over or len(service.victims("server")) > len(loaded):
        report.problems.append(f"more servers than the devices hold: {devices}")


async def without_requests(service: Service) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Waits until no server has a request, at most LONGEST_ANSWER seconds; returns the devices and their servers.

    A client has its answer before the gateway has released the server.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LONGEST_ANSWER
    while True:
        devices = await service.report()
        servers = [server for device in devices for server in device["servers"]]
        if loop.time() > deadline or not any(server["waiting"] or server["in_flight"] for server in servers):
            return devices, servers
        await asyncio.sleep(0.05)


async def run(kinds: Iterable[str], *, seed: int) -> Report:
    """Kills one process of each kind, in order, at random moments."""
    report, rng = Report(seed), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder)) as service:
            stop = asyncio.Event()
            clients = [
                asyncio.create_task(client(service, report, rng=random.Random(seed * 1000 + one), stop=stop))
                for one in range(CLIENTS)
            ]
            async with asyncio.timeout(LONGEST_ANSWER):
                while not report.outcomes["answered"]:
                    await asyncio.sleep(0.05)
            for kind in kinds:
                await asyncio.sleep(rng.uniform(*PACE))
                await kill(service, report, kind, rng)
            stop.set()
            await asyncio.gather(*clients)
            await settle(service, report)
            await service.stop()
            if left := await service.none_left():
                report.problems.append(f"left after the end: {left}")
    return report
