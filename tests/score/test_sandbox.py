"""Programs and their tests in the real sandbox: verdicts, limits, and what is out of reach."""

import asyncio
import os
import signal
import socket
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coe.errors import ConfigError
from coe.measuring import sandbox
from coe.measuring.sandbox import Bounds, Sandbox, Verdict
from coe.measuring.sandbox_child import MAX_WHY
from tests.score.bubblewrap import needs_bubblewrap

pytestmark = pytest.mark.anyio

BOUNDS = Bounds(cpu_seconds=1, wall_seconds=20, memory_bytes=256 * 2**20, disk_bytes=2**20)
SLEEP = "import time; time.sleep(600)"


async def run(program: str, tests: str = "assert True", bounds: Bounds = BOUNDS) -> Verdict:
    return await Sandbox(bounds).run(program, tests)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2"),
        ("async def f(x): return x", "import asyncio\nassert asyncio.run(f(1)) == 1"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: Q\n"
         "class Q: pass", "import answer\nassert P(1) == answer.P(1)"),
        ("def f(): return 1\nif __name__ == '__main__':\n    raise ValueError", "assert f() == 1"),
        ("import os\ndef f(): return os.listdir()", "assert f() == []\nopen('x', 'w').write('y')\nassert f() == ['x']"),
    ],
)  # fmt: skip
async def test_right_programs_pass(program: str, tests: str) -> None:
    assert await run(program, tests) == Verdict(True)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("def f(): return 2", "AssertionError in line 1 of the tests: assert f() == 1"),
        (" ", "holds no Python"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('\\ud800')", "ValueError"),
        ("class E(BaseException):\n    def __str__(self): raise E\nraise E", "E in line 3 of the answer"),
        ("while True: pass", "processor time"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "MemoryError"),
        ("open('big', 'wb').write(bytes(10**8))", "OSError"),
        ("files = [open('x', 'w') for _ in range(100)]", "Too many open files"),
        ("import os\nwhile True: os.fork()", "BlockingIOError"),
        ("import ctypes\nif ctypes.CDLL(None).fork() == -1: raise OSError('no fork')", "no fork"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import os\ndef f(): os._exit(0)", "it ended before its tests did"),
        ("import sys\ndef f(): sys.exit(0)", "SystemExit"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("import os\nfor n in range(32):\n    try: os.write(n, b'passed')\n    except OSError: pass", "passed"),
        ("import os\nwhile True:\n    for n in range(3, 9):\n        try: os.write(n, b'x' * 4096)\n"
         "        except OSError: pass", "processor time"),
    ],
)  # fmt: skip
async def test_wrong_and_greedy_programs_fail_with_the_reason(program: str, why: str) -> None:
    verdict = await run(program, "assert f() == 1")
    assert not verdict.passed
    assert why in verdict.why
    assert len(verdict.why) <= MAX_WHY


@needs_bubblewrap
async def test_a_program_that_sleeps_is_stopped_by_the_clock() -> None:
    session = "import os\ntry: os.setsid()\nexcept OSError: pass\n"
    verdict = await run(session + SLEEP, bounds=Bounds(wall_seconds=0.5))
    assert "longer than 0.5 s" in verdict.why


@needs_bubblewrap
async def test_a_cancelled_run_leaves_no_process() -> None:
    started: list[subprocess.Popen[bytes]] = []
    one = Sandbox(BOUNDS)
    real = subprocess.Popen

    def noted(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*words, **options))
        return started[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", noted)
        task = asyncio.create_task(one.run(SLEEP, "assert True"))
        while not started:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert started[0].returncode == -signal.SIGKILL
    async with asyncio.timeout(20):
        while is_left(started[0].pid):  # until the orphans of bubblewrap are reaped
            await asyncio.sleep(0.01)


def is_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ------------------------------------------------------------------------------------------------- out of reach


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder outside that every user may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@needs_bubblewrap
async def test_no_file_or_environment_outside_can_be_read_or_written(
    anyones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cret")
    tests = "assert set(f()) <= {'PWD', 'LC_CTYPE'}, f()"
    assert await run("import os\ndef f(): return dict(os.environ)", tests) == Verdict(True)
    (anyones / "secret").write_text("s3cret")
    (anyones / "secret").chmod(0o666)
    paths = [str(anyones / "secret"), "/etc/passwd", "/etc/hostname", "/proc/1/environ", __file__, "/var/log", "/run"]
    program = f"import os\ndef f(): return [p for p in {paths!r} if os.path.exists(p)]"
    assert await run(program, "assert f() == [], f()") == Verdict(True)
    folders = [str(anyones), "/", "/dev", "/usr/lib", sysconfig.get_path("stdlib")]
    program = f"def f():\n    for folder in {folders!r}:\n        try: open(folder + '/made', 'w')\n"
    program += "        except OSError: continue\n        return folder"
    assert await run(program, "assert f() is None, f()") == Verdict(True)
    assert os.listdir(anyones) == ["secret"]  # noqa: PTH208


@needs_bubblewrap
async def test_no_process_and_no_socket_outside_can_be_reached(
    anyones: Path, bystander: subprocess.Popen[bytes]
) -> None:
    path = anyones / "socket"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket() as tcp:
        abstract.bind(f"\0{path}")
        tcp.bind(("127.0.0.1", 0))
        abstract.listen()
        tcp.listen()
        addresses = [(int(one.family), one.getsockname()) for one in (abstract, tcp)]
        program = (
            f"import os, socket\ndef f():\n    for pid in (1, {bystander.pid}, {os.getpid()}):\n"
            "        try: os.kill(pid, 9)\n        except OSError: pass\n"
            f"    for family, address in {addresses!r}:\n"
            "        try: socket.socket(family).connect(address)\n        except OSError: continue\n"
            "        return address"
        )
        assert await run(program, "assert f() is None, f()") == Verdict(True)
        assert bystander.poll() is None


@needs_bubblewrap
async def test_no_privileges_are_left() -> None:
    program = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\ndef f():\n"
        "    return os.geteuid(), libc.unshare(0x10000000), libc.mount(None, b'/', None, 4128, None), "
        "libc.shmget(0, 2**30, 0o600)"
    )
    assert await run(program, "assert f() == (65534, -1, -1, -1), f()") == Verdict(True)


# --------------------------------------------------------------------------------------------- where it does not work


async def test_code_is_refused_where_bubblewrap_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "BUBBLEWRAP", "no-such-bwrap")
    with pytest.raises(ConfigError, match=r"not installed here: .*apt-get install bubblewrap"):
        await run("x = 1")


async def test_code_is_refused_where_bubblewrap_may_not_make_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "bwrap"
    stand_in.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sandbox, "BUBBLEWRAP", str(stand_in))
    with pytest.raises(ConfigError, match=r"does not work here \(bwrap: Creating new namespace failed\)"):
        await Sandbox(BOUNDS).check()


@needs_bubblewrap
async def test_the_check_passes_here() -> None:
    await Sandbox().check()
