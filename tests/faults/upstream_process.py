"""An expert's server as a process to start, kill and freeze (upstream.py)."""

from __future__ import annotations

import subprocess
import sys

from coe.fleet.specs import free_port
from tests.gateway.served import ROOT


class Upstream:
    """One server process at a port of its own."""

    def __init__(self, seed: int) -> None:
        self.port = free_port()
        self._seed = seed
        self.start()

    def start(self) -> None:
        command = (sys.executable, "-m", "tests.faults.upstream", str(self.port), str(self._seed))
        self._process = subprocess.Popen(command, cwd=ROOT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)
