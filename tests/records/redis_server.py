"""A real redis-server on a free loopback port."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from coe.fleet.specs import free_port

MISSING = "redis-server is not installed; on Debian or Ubuntu: apt-get install redis-server"


def installed() -> bool:
    return shutil.which("redis-server") is not None


class RedisServer:
    """Runs in `folder`, which also keeps its data where `options` ask for persistence."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder, self._options = folder, options
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns once the server takes connections."""
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder)]
        self._process = subprocess.Popen(
            [*command, "--save", "", *self._options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        raise AssertionError(f"redis-server did not start on port {self.port}")

    def signal(self, number: int) -> None:
        """SIGSTOP makes it hang, SIGCONT go on."""
        assert self._process
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash or the kernel would: no goodbye."""
        assert self._process
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


@contextmanager
def running(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A started server until the block ends; skips the test where none is installed."""
    if not installed():
        pytest.skip(MISSING)
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
