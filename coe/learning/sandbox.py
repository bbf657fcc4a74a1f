"""A sandbox for code that a model wrote: run it with its tests in a process that can do little, and say how it went.

Contained everywhere (POSIX): wall-clock and processor time, memory, the size of files, the number of open files; no
processes and no threads; an empty environment; its output is thrown away; killed with its whole process group.
Contained where the machine allows it (Linux as root, or with unprivileged user namespaces), see `Sandbox.gives_up`:
`network`, none at all; `files`, read-only but for an empty working folder in memory. Root becomes nobody everywhere.
Not contained: reading files that this user (under root: everyone) may read; without namespaces and not as root also
writing, and the network; and a program that sets out to cheat its own tests in the interpreter they share. Code from
people you do not trust belongs in a virtual machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from coe.errors import ConfigError
from coe.learning import jail

MAX_REPORT = 16 * 2**10
"""Bytes read from a sandboxed process; one that writes more is cut off and has failed."""
MAX_PROGRAM = 2**20
"""Characters of a program; longer ones fail unread."""
_KNOWN_GOOD = "import bisect, decimal, fractions\ndef half(n):\n    return fractions.Fraction(n, 2)\n"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one program may use. Wall-clock time is the larger, since several run at once."""

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 512 * 2**20
    disk_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the tests passed, and if not, why, in one line."""

    passed: bool
    why: str = ""


class Sandbox:
    """Runs programs that need Python and its standard library alone, as many at once as there are cores to spare."""

    def __init__(self, bounds: Bounds = Bounds()) -> None:
        self._bounds = bounds
        self._slots = asyncio.Semaphore(max(1, (os.cpu_count() or 1) - 1))

    async def gives_up(self) -> frozenset[str]:
        """What programs are deprived of here: of `network`, `files`, `root`. Raises ConfigError when none can run."""
        token = secrets.token_hex(16)
        ended, lines = await self._lines(_KNOWN_GOOD, "assert half(3) * 2 == 3", token)
        verdict = _verdict(ended, lines, token, self._bounds)
        if verdict.passed:
            return frozenset(lines[0].split())
        raise ConfigError(
            f"the sandbox cannot run {sys.executable} here ({verdict.why}); run as an ordinary user who may read it, "
            "or as root who may become nobody (CAP_SETUID), or leave out probes with checker 'code'"
        )

    async def run(self, program: str, tests: str) -> Verdict:
        """Run a program, then its tests. Passed only when the tests ran to their end."""
        if not program.strip():
            return Verdict(False, "the answer holds no Python")
        if len(program) > MAX_PROGRAM:
            return Verdict(False, f"the program is longer than {MAX_PROGRAM} characters")
        token = secrets.token_hex(16)
        ended, lines = await self._lines(program, tests, token)
        return _verdict(ended, lines, token, self._bounds)

    async def _lines(self, program: str, tests: str, token: str) -> tuple[int | None, list[str]]:
        """How the process ended (None: out of time or wordy) and the lines it reported."""
        bounds = self._bounds
        task: Mapping[str, object] = {
            "answer": program,
            "tests": tests,
            "token": token,
            "cpu_seconds": bounds.cpu_seconds,
            "memory_bytes": bounds.memory_bytes,
            "disk_bytes": bounds.disk_bytes,
        }
        async with self._slots:
            with tempfile.TemporaryDirectory(prefix="coe-sandbox-", ignore_cleanup_errors=True) as folder:
                return await _spawn(orjson.dumps(task), Path(folder), bounds.wall_seconds)


async def _spawn(task: bytes, folder: Path, patience: float) -> tuple[int | None, list[str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        jail.__file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=folder,
        env={},
        start_new_session=True,
    )
    report = b""
    in_time = False
    try:
        async with asyncio.timeout(patience):
            report = await _exchange(process, task)
            if len(report) <= MAX_REPORT:
                await process.wait()
                in_time = True
    except TimeoutError:
        pass
    finally:
        await _end(process)
    return process.returncode if in_time else None, report.decode("utf-8", "replace").split("\n")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the group if it lives, and read its pipes empty, without which they would stay open."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            await process.communicate()


async def _exchange(process: asyncio.subprocess.Process, task: bytes) -> bytes:
    """Hand over the task and read the report, at most a little more than MAX_REPORT bytes of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(task)
        await process.stdin.drain()
        process.stdin.close()
    report = b""
    while len(report) <= MAX_REPORT and (piece := await process.stdout.read(MAX_REPORT)):
        report += piece
    return report


def _verdict(ended: int | None, lines: list[str], token: str, bounds: Bounds) -> Verdict:
    told = [line.removeprefix(f"{token} ") for line in lines if line.startswith(f"{token} ")]
    if told:
        return Verdict(True) if told == ["passed"] else Verdict(False, told[0])
    if ended is None:
        return Verdict(False, f"it ran longer than {bounds.wall_seconds:g} s, or wrote where it must not")
    if ended == -signal.SIGXCPU:
        return Verdict(False, f"it used more than {bounds.cpu_seconds} s of processor time")
    if ended < 0:
        return Verdict(False, f"it crashed (signal {-ended})")
    return Verdict(False, "it ended before its tests did")
