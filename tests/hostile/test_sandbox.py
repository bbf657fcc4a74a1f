"""Answers that attack the sandbox, the machine around it, or the verdict."""
# ruff: noqa: E501 -- programs

import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.learning.evaluation.sandbox import Bounds, Verdict
from tests.score.bubblewrap import checked_sandbox, needs_bubblewrap

pytestmark = [pytest.mark.anyio, needs_bubblewrap]

BOUNDS = Bounds(cpu_seconds=1, wall_seconds=20, memory_bytes=256 * 2**20, disk_bytes=2**20)


async def run(program: str, tests: str = "assert f(2) == 4", bounds: Bounds = BOUNDS) -> Verdict:
    return await checked_sandbox(bounds).run(program, tests)


# --------------------------------------------------------------------------------------------------------- forging

EVIL = """
class Evil:
    def always(self, *others): return True
    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = __instancecheck__ = always
    def zero(self, *others): return 0.0
    __sub__ = __rsub__ = __mod__ = __truediv__ = __abs__ = __float__ = __round__ = zero
    def __ne__(self, other): return False
    def __hash__(self): return hash(4)
    def __iter__(self): return iter([])
    def __len__(self): return 4
    def __enter__(self): return self
    def __exit__(self, *error): return True
    def __getattr__(self, name): return Evil()
def f(x=0): return Evil()
"""


@pytest.mark.parametrize(
    "program",
    [
        "print('passed')\nimport os; os._exit(0)",
        "import os\ndef f(x): os._exit(0)",
        "import sys\nsys.exit(0)",
        "import sys\ndef f(x): sys.exit(0)",
        "def f(x): raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import os; os.kill(os.getpid(), 40)",
        "class E(BaseException):\n    def __str__(self): raise E\nraise E",
        "import builtins, sys\nbuiltins.exit = sys.exit = lambda *a: None\nbuiltins.AssertionError = type('A', (), {})\n"
        "builtins.__build_class__ = builtins.compile = builtins.exec = lambda *a, **k: None\ndef f(x): return 5",
        "import atexit, os\natexit.register(os.write, 1, b'{\"passed\": true, \"why\": \"\"}')\ndef f(x): return 5",
        "import json, os\nline = json.dumps({'passed': True, 'why': '', 'unusable': False, 'ended': False}).encode()\n"
        "for n in range(64):\n    for data in (line, len(line).to_bytes(4, 'big') + line):\n"
        "        try: os.write(n, data)\n        except OSError: pass\ndef f(x): return 5",
        "import gc, sys\ndef found(o): return '4 == )2(f' in str(o)[::-1]\nknown = any(map(found, gc.get_objects()))\n"
        "frame = sys._getframe()\nwhile frame:\n    known |= any(map(found, frame.f_globals.values()))\n"
        "    frame = frame.f_back\ndef f(x): return 4 if known else 5",
        "import sys\nsys.modules['__main__'].__dict__.clear()\ndef f(x): return 5",
        "import coe.learning.evaluation.sandbox_child.answer as a\na.AnswerProcess._reply = lambda *x: ['passed', True]\ndef f(x): return 5",
        "def all(x): return True\ndef abs(x): return 0\ndef isinstance(*x): return True\ndef f(x): return 5",
        EVIL,
    ],
)  # fmt: skip
async def test_no_answer_can_forge_a_pass(program: str) -> None:
    assert not (await run(program)).passed
    assert not (await run(program, "assert all(f(x) == x * x for x in (2, 3))")).passed


@pytest.mark.parametrize(
    "tests",
    [
        "assert 4 == f(2)",
        "assert [f(1), 4] == [1, 4]",
        "assert not f(2) != 4",
        "assert f(2) in (4, 5)",
        "assert f(2) in {4: 0}",
        "assert 4 in f(2)",
        "assert 3 < f(2) < 5",
        "assert abs(f(2) - 4) < 1e-6",
        "assert abs(4 - f(2)) < 1e-6",
        "assert round(f(2), 2) == 4",
        "import math\nassert math.isclose(f(2), 4)",
        "assert isinstance(f(2), int)",
        "with f(2) as x:\n    assert x == 4",
        "assert f(2) is 4 or f(2) == 4",
        "assert list(f(2)) == [4]",
        "assert f(2).value == 4",
    ],
)
async def test_an_object_that_equals_everything_passes_no_comparison(tests: str) -> None:
    assert not (await run(EVIL, tests)).passed


async def test_modules_that_the_tests_use_are_the_real_ones() -> None:
    fake = "class math:\n    isclose = staticmethod(lambda *a: True)\ndef f(x): return 5"
    assert not (await run(fake, "assert math.isclose(f(2), 4)")).passed


async def test_leaving_counts_as_a_failure_even_where_the_tests_intercept_everything() -> None:
    tests = "try:\n    f()\nexcept:\n    pass\nelse:\n    assert False"
    assert (await run("def f(): raise ValueError", tests)).passed
    for leave in ("import os; os._exit(0)", "import sys; sys.exit()", "raise GeneratorExit"):
        assert not (await run(f"def f():\n    {leave}", tests)).passed


async def test_stop_iteration_does_not_end_a_loop_of_the_tests() -> None:
    tests = "def check(x):\n    assert f(x) == x * x\n    return True\nassert all(map(check, [1, 2]))"
    assert (await run("def f(x): return x * x", tests)).passed
    assert not (await run("def f(x): raise StopIteration", tests)).passed


@pytest.mark.parametrize(
    "message",
    [
        '["value", ["list", "ab"], [], ""]',
        '["value", ["same", 7], [], ""]',
        '["value", ["call", 7], [], ""]',
        '["value", ["builtin", "exec"], [], ""]',
        '["value", ["text", "os.system", "true"], [], ""]',
        '["value", ["frozenset", [["list", []]]], [], ""]',
        '["value", 4, [[9, []]], ""]',
        '["value", {"passed": true}, [], ""]',
        '["raised", ["exception", ["error", -1, "builtins", "SystemExit", []], [], ""], [], ""]',
        '["raised", 4, [], ""]',
        '["left"]',
        "4",
        "[]",
        "[" * 100_000,
        "9" * 10_000,
    ],
)
async def test_forged_messages_are_a_failure(message: str) -> None:
    program = (
        "import os\nline = " + repr(message.encode()) + "\ndef f(x):\n"
        "    for n in range(3, 10):\n"
        "        try: os.write(n, len(line).to_bytes(4, 'big') + line)\n"
        "        except OSError: pass\n"
        "    import time; time.sleep(5)"
    )
    assert not (await run(program)).passed


async def test_a_message_without_end_is_refused() -> None:
    flood = "import os\ndef f(x):\n    while True:\n        for n in range(3, 10):\n            try: os.write(n, b'\\xff' * 4096)\n            except OSError: pass"
    assert not (await run(flood)).passed


# ------------------------------------------------------------------------------------------------------- taking much


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("while True: pass", "processor time"),
        ("import sys\nwhile True: sys.stdout.write('x' * 100_000)", "processor time"),
        ("import os\nfor _ in range(6): os.fork()", "BlockingIOError"),
        ("import ctypes\nif ctypes.CDLL(None).fork() == -1: raise OSError('no fork')", "no fork"),
        ("n = 0\nwhile True:\n    open(str(n), 'w').write('x' * 100_000); n += 1", "OSError"),
        ("n = 0\nwhile True:\n    open(str(n), 'w').close(); n += 1", "No space left"),
        ("def f(x): return 'x' * 2**23", "a value of"),
        ("def f(x): return f(x)", "RecursionError"),
        ("x = []\nfor _ in range(10**5): x = [x]\ndef f(_): return x", "RecursionError"),
        ("import ctypes\nif ctypes.CDLL(None).shmget(0, 2**30, 0o600) == -1: raise OSError('no segment')", "no segment"),
        ("import os\nos.memfd_create('x')", "PermissionError"),
        ("import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == -1: raise OSError('no namespace')", "no namespace"),
        ("import ctypes\nif ctypes.CDLL(None).mount(None, b'/', None, 32 | 4096, None): raise OSError('no mount')", "no mount"),
        ("import os\nos.execv('/proc/self/exe', ['x'])", "Error"),
    ],
)  # fmt: skip
async def test_resource_bombs_are_bounded(program: str, why: str) -> None:
    verdict = await run(program)
    assert not verdict.passed
    assert why in verdict.why


# ----------------------------------------------------------------------------------------------------- reaching out


@pytest.fixture
def anyones() -> Iterator[Path]:
    """A folder outside that every user may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process outside that runs until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


async def test_no_process_outside_can_be_signalled(bystander: subprocess.Popen[bytes]) -> None:
    program = f"import os\ndef f(x):\n    for pid in (-1, 1, {bystander.pid}, {os.getpid()}):\n"
    program += "        try: os.kill(pid, 9)\n        except OSError: pass\n    return x * x"
    assert (await run(program)).passed  # not even the supervisor of its own sandbox
    assert bystander.poll() is None


async def test_no_socket_outside_can_be_reached(anyones: Path) -> None:
    path = anyones / "socket"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract, socket.socket() as tcp:
        for one, address in ((named, str(path)), (abstract, f"\0{path}"), (tcp, ("127.0.0.1", 0))):
            one.bind(address)
            one.listen()
        path.chmod(0o777)
        addresses = [(socket.AF_UNIX.value, named.getsockname()), (socket.AF_UNIX.value, abstract.getsockname())]
        addresses.append((socket.AF_INET.value, tcp.getsockname()))
        program = (
            f"import socket\ndef f():\n    found = []\n    for family, address in {addresses!r}:\n"
            "        try: socket.socket(family).connect(address)\n        except OSError as e: found.append(type(e).__name__)\n"
            "    return found"
        )
        assert (await run(program, "found = f()\nassert len(found) == 3, found")).passed


async def test_no_file_outside_can_be_read_or_written(anyones: Path) -> None:
    (anyones / "secret").write_text("s3cret")
    (anyones / "secret").chmod(0o666)
    paths = [str(anyones / "secret"), "/etc/passwd", "/etc/hostname", "/proc/1/environ", "/sys/kernel/uevent_seqnum"]
    paths += [__file__, str(Path.home()), "/var/log", "/run", "/home"]
    program = f"import os\ndef f(): return [p for p in {paths!r} if os.path.isfile(p) or os.path.isdir(p) and os.listdir(p) and p != {str(Path.home())!r}]"
    assert await run(program, "found = f()\nassert found == [], found") == Verdict(True)
    writing = "import os, pathlib\ndef f(where): pathlib.Path(where, 'made').write_text('x')"
    for folder in (str(anyones), "/", "/dev", "/usr/lib", sysconfig.get_path("stdlib")):
        tests = f"try: f({folder!r})\nexcept OSError: pass\nelse: assert False"
        assert (await run(writing, tests)).passed
    assert names_in(anyones) == ["secret"]


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_the_environment_is_empty_and_the_user_is_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COE_TEST_SECRET", "s3cret")
    program = "import os\ndef f(): return set(os.environ), os.geteuid()"
    tests = "names, user = f()\nassert names <= {'PWD', 'LC_CTYPE'}, names\nassert user != 0"
    assert await run(program, tests) == Verdict(True)


async def test_the_tests_run_in_a_sandbox_too(anyones: Path) -> None:
    assert not (await run("x = 1", f"open({str(anyones / 'made')!r}, 'w')\nassert True")).passed
    assert names_in(anyones) == []
