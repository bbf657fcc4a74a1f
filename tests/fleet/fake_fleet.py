"""Specs of fake servers, and the state of the processes behind them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from coe.fleet.engines import VllmClient
from coe.fleet.specs import ServerSpec, Timeouts, free_port

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
DEADLINE = 60.0
QUICK = Timeouts(
    check_interval=0.05,
    check_timeout=0.3,
    max_missed_checks=1000,  # never: on a busy machine a healthy server misses some, and the exit of one is known late
    grace=0.2,
    first_restart=0.05,
    max_restart=0.2,
)


@dataclass
class Fakes:
    """Makes specs of fake servers in `folder`; collects the processes that they start and the reported lines."""

    folder: Path
    lines: list[str] = field(default_factory=list)
    _line_added: asyncio.Event = field(default_factory=asyncio.Event)

    def spec(
        self, mode: str = "ok", *, key: str = "fake", port: int = 0, ready_timeout: float = DEADLINE
    ) -> ServerSpec:
        port = port or free_port()
        return ServerSpec(
            key=key,
            argv=(sys.executable, str(FAKE_SERVER), str(port), mode, str(self.folder / f"{key}.pids")),
            port=port,
            env={"OMP_NUM_THREADS": "3"},
            model="a-model",
            log=self.folder / "logs" / f"{key}.log",
            ready_timeout=ready_timeout,
            open_client=VllmClient,
        )

    def report(self, line: str) -> None:
        self.lines.append(line)
        self._line_added.set()

    async def wait_for_line(self, text: str, *, times: int = 1) -> None:
        """Waits until `times` lines contained `text`."""
        async with asyncio.timeout(DEADLINE):
            while sum(text in line for line in self.lines) < times:
                self._line_added.clear()
                await self._line_added.wait()

    def pids(self) -> list[int]:
        return [int(line) for path in self.folder.glob("*.pids") for line in path.read_text().split()]

    def alive(self) -> list[int]:
        return [pid for pid in self.pids() if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    """A zombie is not alive: init may be slow to reap what a killed supervisor leaves."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def processes_logging_to(folder: Path) -> list[psutil.Process]:
    """The living processes whose output goes to a file in a folder, such as the servers of a fleet."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(Path(file.path).is_relative_to(folder) for file in process.open_files()):
                found.append(process)
    return found


async def send_chat(spec: ServerSpec, path: str) -> None:
    """Sends a GET that may end the server before it answers; waits a second for the answer."""
    with suppress(OSError):  # TimeoutError is one
        reader, writer = await asyncio.open_connection("127.0.0.1", spec.port)
        with closing(writer):
            writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            async with asyncio.timeout(1.0):
                await reader.read()
