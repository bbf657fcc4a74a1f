"""A sandbox for code that a model wrote: runs it against its tests and returns a verdict that it cannot forge.

A run has two isolated processes (`isolation`): the answer's process runs the answer, and the examiner runs the tests
and returns the verdict. The examiner requests each operation on the answer's objects through a pipe and compares the
results itself (`sandbox_child`). Without `unsafe`, nothing runs if the isolation does not work on this machine.
docs/guides/measure-and-plan.md describes the limits and what tests can rely on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import asdict, dataclass

import orjson
import psutil

from coe.errors import ConfigError
from coe.learning.evaluation import isolation
from coe.learning.evaluation.isolation import REMEDY, Part, command, installed

MAX_REPORT_BYTES = 16 * 2**10
"""Output of a sandboxed process; one that writes more has failed."""
MAX_PROGRAM_CHARACTERS = 2**20
"""Longer programs fail unread."""
_END_SECONDS = 5.0
"""Wait for a process that was killed."""
_SIGNALLED = 128
"""Added to a signal's number by bubblewrap for its exit status."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of each of a run's two processes. Wall-clock time is the larger, since several run at once."""

    cpu_seconds: int = 10
    wall_seconds: float = 30.0
    memory_bytes: int = 512 * 2**20
    disk_bytes: int = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the tests. `why` is the reason, in one line, if they did not pass.

    `unusable` is True if the tests need an operation that cannot be forwarded to the answer's process. The tests are
    then at fault, not the answer.
    """

    passed: bool
    why: str = ""
    unusable: bool = False


class Sandbox:
    """Runs programs that need Python and its standard library alone, as many at once as there are cores to spare.

    With `unsafe`, programs run as processes of this user, with bounded resources and nothing else to hold them.
    """

    def __init__(self, bounds: Bounds = Bounds(), *, unsafe: bool = False) -> None:
        self._bounds = bounds
        self._unsafe = unsafe
        self._slots = asyncio.Semaphore(max(1, (os.cpu_count() or 1) - 1))
        self._checking = asyncio.Lock()
        self._is_checked = False

    async def check(self) -> None:
        """Prove once that programs can run, and that they are isolated. Raises ConfigError with the remedy."""
        async with self._checking:
            if not self._is_checked:
                await self._check()
                self._is_checked = True

    async def _check(self) -> None:
        if not self._unsafe and not installed():
            raise ConfigError(f"code of experts needs a sandbox, and bubblewrap is not installed here: {REMEDY}")
        with isolation.leak_probe() as program:
            tests = isolation.TESTS_BARE if self._unsafe else isolation.TESTS
            verdict = await self._run_once(program, tests, explained=True)
        if not verdict.passed:
            raise ConfigError(f"the sandbox for code of experts does not work here ({verdict.why}): {REMEDY}")

    async def run(self, program: str, tests: str) -> Verdict:
        """Run a program and its tests. Passed only when the tests ran to their end. Raises ConfigError like `check`."""
        if not program.strip():
            return Verdict(False, "the answer holds no Python")
        if len(program) > MAX_PROGRAM_CHARACTERS:
            return Verdict(False, f"the program is longer than {MAX_PROGRAM_CHARACTERS} characters")
        await self.check()
        return await self._run_once(program, tests)

    async def _run_once(self, program: str, tests: str, *, explained: bool = False) -> Verdict:
        """Run both processes and return the verdict. With `explained`, a failure has the last stderr line."""
        bounds = self._bounds
        async with self._slots, contextlib.AsyncExitStack() as stack:
            pipes = stack.enter_context(contextlib.ExitStack())
            (requests, to_answer), (results, to_examiner) = _pipe(pipes), _pipe(pipes)
            answer = await self._start_process("answer", stack, (requests, to_examiner))
            examiner = await self._start_process("examiner", stack, (results, to_answer))
            pipes.close()  # the processes have their own ends
            report = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(bounds.wall_seconds):
                    report = await _exchange(examiner, orjson.dumps({"answer": program, "tests": tests}))
            if report is None or len(report) > MAX_REPORT_BYTES:
                return Verdict(False, f"it ran longer than {bounds.wall_seconds:g} s, or wrote where it must not")
            verdict = await _parse_verdict(report, answer, bounds)
            if explained and not verdict.passed and (complaint := await _last_stderr_line(answer, examiner)):
                return Verdict(False, complaint)
            return verdict

    async def _start_process(
        self, part: Part, stack: contextlib.AsyncExitStack, ends: tuple[int, int]
    ) -> asyncio.subprocess.Process:
        examines = part == "examiner"
        words = [str(end) for end in ends] if examines else []
        start = asyncio.create_subprocess_exec(
            *command(part, words, limits=asdict(self._bounds), unsafe=self._unsafe),
            stdin=asyncio.subprocess.PIPE if examines else ends[0],
            stdout=asyncio.subprocess.PIPE if examines else ends[1],
            stderr=asyncio.subprocess.PIPE,
            pass_fds=ends if examines else (),
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
        )
        starting = asyncio.ensure_future(start)
        stack.push_async_callback(_end_started, starting)
        return await asyncio.shield(starting)  # a start that is cancelled itself can wait for its pipes forever


def _pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    """The ends of a pipe for reading and for writing, which the stack closes."""
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


async def _exchange(examiner: asyncio.subprocess.Process, task: bytes) -> bytes:
    """Hand over the task and read the report, at most a little more than MAX_REPORT_BYTES of it."""
    assert examiner.stdin is not None
    assert examiner.stdout is not None
    with contextlib.suppress(ConnectionError):
        examiner.stdin.write(task)
        await examiner.stdin.drain()
        examiner.stdin.close()
    report = b""
    while len(report) <= MAX_REPORT_BYTES and (chunk := await examiner.stdout.read(MAX_REPORT_BYTES)):
        report += chunk
    return report


async def _status(answer: asyncio.subprocess.Process) -> int | None:
    """The exit status of the answer's process, which ends when the tests' process does; None where it stays."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            return await answer.wait()
    return None


async def _last_stderr_line(*processes: asyncio.subprocess.Process) -> str:
    """The last line on standard error, which a process has only until it is confined."""
    for process in processes:
        assert process.stderr is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                text = (await process.stderr.read(MAX_REPORT_BYTES)).decode("utf-8", "replace").strip()
                if text:
                    return text.splitlines()[-1][:300]
    return ""


async def _end_started(starting: asyncio.Future[asyncio.subprocess.Process]) -> None:
    """Wait until a process has started, and end it."""
    with contextlib.suppress(OSError):  # it could not start: `_start_process` has raised this
        await _end(await starting)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill the process and its descendants if it still runs, and drain its pipes so that asyncio closes them."""
    if process.returncode is None:
        await _kill(process.pid)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            await process.communicate()


async def _kill(pid: int) -> None:
    """Kill the group of a process, and its descendants in other sessions: bubblewrap's child dies with bubblewrap only
    once its own start has requested that."""
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            process.suspend()
            await _until_stopped(process)  # then it cannot start another child
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


async def _until_stopped(process: psutil.Process) -> None:
    """Wait until a process has stopped or ended, at most _END_SECONDS."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):  # noqa: ASYNC110
                await asyncio.sleep(0.001)


async def _parse_verdict(report: bytes, answer: asyncio.subprocess.Process, bounds: Bounds) -> Verdict:
    """Parse the examiner's report. The exit status of the answer's process only adds the reason of a failure."""
    try:
        found = orjson.loads(report)
    except orjson.JSONDecodeError:
        return Verdict(False, "the tests ended before their verdict, for want of time or memory")
    if found["ended"] and (status := await _status(answer)):
        return Verdict(False, _why_ended(status, bounds))
    return Verdict(found["passed"] is True, found["why"], found["unusable"])


def _why_ended(status: int, bounds: Bounds) -> str:
    number = -status if status < 0 else status - _SIGNALLED
    if number == signal.SIGXCPU:
        return f"it used more than {bounds.cpu_seconds} s of processor time"
    return f"it crashed (signal {number})" if number > 0 else "it ended before its tests did"
