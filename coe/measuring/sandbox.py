"""Runs code that a model wrote, and its tests, in one bounded process (`sandbox_child`) isolated by bubblewrap.

The tests pass only if the process writes a random token, which it reads after the answer's code has run. An answer
that leaves early fails. An answer written to cheat can still find the token in its own process, or patch what the
tests use: that spoils its score alone. docs/guides/measure-and-plan.md describes the limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from coe.errors import ConfigError
from coe.measuring.sandbox_child import MAX_WHY

BUBBLEWRAP = "bwrap"
REMEDY = (
    "install bubblewrap (apt-get install bubblewrap) on a machine that allows namespaces, or leave out probes with "
    "checker 'code'"
)
_POLL_SECONDS = 0.01
_SIGNALLED = 128
"""Added to a signal's number by bubblewrap for its exit status."""
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
_WORKING_FOLDER = "/tmp"  # noqa: S108 -- a private one
_FORK_FAILS = "try:\n    os.fork()\nexcept OSError:\n    pass\nelse:\n    raise OSError('it can start processes')"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a run. Wall-clock time is the larger, since several run at once."""

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 512 * 2**20
    disk_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the tests. `why` is the reason, in one line, if they did not pass."""

    passed: bool
    why: str = ""


def installed() -> bool:
    return shutil.which(BUBBLEWRAP) is not None


class Sandbox:
    """Runs programs that need Python and its standard library alone, as many at once as there are cores to spare."""

    def __init__(self, bounds: Bounds = Bounds()) -> None:
        self._bounds = bounds
        self._slots = asyncio.Semaphore(max(1, (os.cpu_count() or 1) - 1))

    async def check(self) -> None:
        """Prove that programs can run here and start no processes. Raises ConfigError with the remedy."""
        verdict = await self.run("import os", _FORK_FAILS)
        if not verdict.passed:
            raise ConfigError(f"the sandbox for code of experts does not work here ({verdict.why}): {REMEDY}")

    async def run(self, program: str, tests: str) -> Verdict:
        """Run a program, and then its tests in the same module. Raises ConfigError where bubblewrap is missing."""
        if not program.strip():
            return Verdict(False, "the answer holds no Python")
        token = secrets.token_hex(16)
        lines = {"limits": asdict(self._bounds), "answer": program}, {"tests": tests, "token": token}
        async with self._slots:
            with tempfile.TemporaryFile() as task, tempfile.TemporaryFile() as report:
                task.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())
                task.seek(0)
                status = await self._exit_status(task, report)
                report.seek(0)
                text = report.read(4 * MAX_WHY).decode("utf-8", "replace").strip()
        if status == 0 and text == token:
            return Verdict(True)
        return Verdict(False, self._why_failed(status, text))

    async def _exit_status(self, task: IO[bytes], report: IO[bytes]) -> int | None:
        """The exit status of the process; None if it was killed because its time was up."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            process = self._start(task, report, folder)
            try:
                async with asyncio.timeout(self._bounds.wall_seconds):
                    while process.poll() is None:  # noqa: ASYNC110
                        await asyncio.sleep(_POLL_SECONDS)
            except TimeoutError:
                return None
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)  # all processes of bubblewrap are in this group
                    process.wait()
        return process.returncode

    def _start(self, task: IO[bytes], report: IO[bytes], folder: str) -> subprocess.Popen[bytes]:
        source = Path(__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")
        bubblewrap = shutil.which(BUBBLEWRAP)
        if bubblewrap is None:
            raise ConfigError(f"code of experts needs a sandbox, and bubblewrap is not installed here: {REMEDY}")
        python = (_interpreter(), "-I", "-S", "-B", "-c", source)
        words = [bubblewrap, *_isolation(self._bounds.disk_bytes), "--", *python]
        return subprocess.Popen(  # noqa: S603
            words, stdin=task, stdout=report, stderr=report, cwd=folder, env={}, start_new_session=True
        )

    def _why_failed(self, status: int | None, text: str) -> str:
        if status is None:
            return f"it ran longer than {self._bounds.wall_seconds:g} s"
        number = -status if status < 0 else status - _SIGNALLED
        if number == signal.SIGXCPU:
            return f"it used more than {self._bounds.cpu_seconds} s of processor time"
        if number > 0:
            return f"it crashed (signal {number})"
        return text.splitlines()[-1][:MAX_WHY] if text else "it ended before its tests did"


def _isolation(disk_bytes: int) -> Iterator[str]:
    """Options of bubblewrap: no network, no other processes, no rights, and one folder that can be written."""
    yield from ("--unshare-user", "--unshare-all", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL")
    yield "--die-with-parent"
    for path in _readable():
        yield from ("--ro-bind", path, path)
    for device in ("/dev/null", "/dev/urandom"):
        yield from ("--dev-bind", device, device)
    yield from ("--size", str(disk_bytes), "--tmpfs", _WORKING_FOLDER, "--chdir", _WORKING_FOLDER)
    yield from ("--remount-ro", "/")


def _interpreter() -> str:
    """The interpreter itself, not the link to it in a virtual environment."""
    return str(Path(sys.executable).resolve())


def _readable() -> Iterator[str]:
    """Paths that the interpreter needs: itself, the standard library and shared libraries."""
    wanted = [*_LIBRARIES, "/etc/ld.so.cache", _interpreter(), sysconfig.get_path("stdlib")]
    yield from (path for path in wanted if Path(path).exists())
    yield from map(str, sorted((Path(sys.base_prefix) / "lib").glob("libpython*.so*")))
