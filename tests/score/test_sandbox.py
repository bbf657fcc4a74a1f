"""Hostile programs in the real sandbox."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.errors import ConfigError
from coe.learning import sandbox as module
from coe.learning.sandbox import Bounds, Sandbox, Verdict

pytestmark = pytest.mark.anyio

BOUNDS = Bounds(cpu_seconds=1, wall_seconds=20, memory_bytes=256 * 2**20, disk_bytes=2**20)


async def run(program: str, tests: str = "assert True", bounds: Bounds = BOUNDS) -> Verdict:
    return await Sandbox(bounds).run(program, tests)


async def contained(what: str) -> None:
    """Skips the test where this machine cannot take that away from a process."""
    if what not in await Sandbox(BOUNDS).gives_up():
        pytest.skip(f"this machine cannot take away: {what}")


async def test_a_right_program_passes_and_may_use_the_standard_library() -> None:
    program = "import collections, dataclasses, heapq, re\n@dataclasses.dataclass\nclass P:\n    x: int\n"
    assert await run(program, "assert P(1).x == 1\nassert heapq.nsmallest(1, [2, 1]) == [1]") == Verdict(True)


async def test_a_wrong_program_fails_with_the_test_that_told() -> None:
    verdict = await run("def f(x): return x", "assert f(1) == 1\nassert f(2) == 3")
    assert not verdict.passed
    assert verdict.why == "AssertionError in line 2 of the tests: assert f(2) == 3"


async def test_the_main_part_of_a_program_does_not_run() -> None:
    assert (await run("def f(): return 1\nif __name__ == '__main__':\n    raise ValueError", "assert f() == 1")).passed


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("", "holds no Python"),
        ("def f(:", "SyntaxError"),
        ("x" * (module.MAX_PROGRAM + 1), "longer than"),
        ("import sys; sys.exit(0)", "left the interpreter"),
        ("import os; os._exit(0)", "ended before its tests did"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (signal 11)"),
        ("import os; os.kill(os.getpid(), 40)", "crashed (signal 40)"),
        ("print('passed')\nimport os; os._exit(0)", "ended before its tests did"),
        ("class E(BaseException):\n    def __str__(self): raise E\nraise E", "E in line"),
        ("while True: pass", "processor time"),
        ("import sys\nwhile True: sys.stdout.write('x' * 100_000)", "processor time"),
        ("x = bytearray(10**9)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "MemoryError"),
        ("open('big', 'wb').write(bytes(10**8))", "OSError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import subprocess; subprocess.run(['true'])", "Error"),
        ("files = [open('x', 'w') for _ in range(100)]", "Too many open files"),
    ],
)
async def test_a_program_that_cheats_crashes_or_takes_too_much_fails(program: str, why: str) -> None:
    verdict = await run(program)
    assert not verdict.passed
    assert why in verdict.why


async def test_leaving_during_the_tests_is_no_pass_either() -> None:
    assert "left the interpreter" in (await run("import sys\ndef f(): sys.exit(0)", "f()")).why
    assert "ended before" in (await run("import os\ndef f(): os._exit(0)", "f()")).why


async def test_a_fake_verdict_on_every_open_file_does_not_count() -> None:
    write = "import os\nfor n in range(64):\n    try: os.write(n, b'%s')\n    except OSError: pass\nos._exit(0)"
    assert not (await run(write % "token passed\\n")).passed
    assert not (await run(write % " passed\\n")).passed


async def test_a_flood_of_output_is_cut_off() -> None:
    once = "for n in range(3, 32):\n        try: os.write(n, b'x' * 60000)\n        except OSError: pass"
    flood = f"import os\nwhile True:\n    {once}"
    assert not (await run(flood)).passed


async def test_a_fork_bomb_has_no_children() -> None:
    verdict = await run("import os\nfor _ in range(6): os.fork()")
    assert not verdict.passed
    assert "BlockingIOError" in verdict.why


async def test_a_program_that_sleeps_is_stopped_by_the_clock() -> None:
    verdict = await run("import time; time.sleep(600)", bounds=Bounds(wall_seconds=0.5))
    assert "longer than 0.5 s" in verdict.why


async def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COE_TEST_SECRET", "s3cret")
    assert (await run("import os", "assert not set(os.environ) - {'LC_CTYPE'}, os.environ")).passed


async def test_the_environment_of_the_parent_cannot_be_read() -> None:
    await contained("files")
    assert "PermissionError" in (await run("import os\nopen(f'/proc/{os.getppid()}/environ').read()")).why


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder that everyone may write into."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_nothing_outside_its_folder_can_be_written(anyones: Path) -> None:
    await contained("files")
    assert "Read-only" in (await run(f"open({str(anyones / 'written')!r}, 'w').write('x')")).why
    assert names_in(anyones) == []


async def test_its_own_folder_can_be_written_and_is_gone_afterwards() -> None:
    program = "import os\nopen('here', 'w').write('x')\nwhere = os.getcwd()"
    assert (await run(program, "assert open('here').read() == 'x'")).passed
    verdict = await run(program, "assert False, where")
    folder = Path(verdict.why.split()[1])
    assert folder.name.startswith("coe-sandbox-")
    assert folder.name not in names_in(folder.parent)


async def test_what_was_given_up_cannot_be_taken_back() -> None:
    await contained("files")
    again = "import ctypes\nmade = ctypes.CDLL(None).mount(None, b'/', None, 32 | 4096, None)"
    assert (await run(again, "assert made == -1")).passed


async def test_there_is_no_network() -> None:
    await contained("network")
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    verdict = await run(f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)")
    server.close()
    await server.wait_closed()
    assert "unreachable" in verdict.why


async def test_a_cancelled_run_leaves_no_process() -> None:
    pids: list[int] = []
    real = asyncio.create_subprocess_exec

    async def noted(*words: object, **options: object) -> asyncio.subprocess.Process:
        process = await real(*words, **options)  # type: ignore[arg-type]
        pids.append(process.pid)
        started.set()
        return process

    started = asyncio.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", noted)
        task = asyncio.create_task(run("import time; time.sleep(600)"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], signal.SIG_DFL)


async def test_a_machine_where_nothing_can_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(ConfigError, match="the sandbox cannot run /bin/true here"):
        await Sandbox(BOUNDS).gives_up()
