"""Programs and their tests in the real sandbox: what works across its two processes, and what is bounded."""
# ruff: noqa: E501 -- programs

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from coe.errors import ConfigError
from coe.learning.evaluation import isolation, sandbox
from coe.learning.evaluation.sandbox import Bounds, Sandbox, Verdict
from tests.score.bubblewrap import checked_sandbox, needs_bubblewrap

pytestmark = [pytest.mark.anyio, needs_bubblewrap]

BOUNDS = Bounds(cpu_seconds=1, wall_seconds=20, memory_bytes=256 * 2**20, disk_bytes=2**20)


async def run(program: str, tests: str = "assert True", bounds: Bounds = BOUNDS) -> Verdict:
    return await checked_sandbox(bounds).run(program, tests)


VECTOR = """
class Vector:
    def __init__(self, x, y): self.x, self.y = x, y
    def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)
    def __mul__(self, factor): return Vector(self.x * factor, self.y * factor)
    __rmul__ = __mul__
    def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
    def __lt__(self, other): return self.x < other.x
    def __hash__(self): return hash((self.x, self.y))
    def __abs__(self): return (self.x ** 2 + self.y ** 2) ** 0.5
    def __len__(self): return 2
    def __getitem__(self, index): return (self.x, self.y)[index]
    def __contains__(self, item): return item in (self.x, self.y)
    def __str__(self): return f'<{self.x}, {self.y}>'
    def __enter__(self): return self
    def __exit__(self, *error): self.left = error[0] is not None
    @property
    def total(self): return self.x + self.y
"""


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x): return x", "import datetime as d\nfor v in (None, 2**70, -1.5, 'a\\ud800', b'x', 1j, d.date(2020, 1, 2),"
         " d.timedelta(1), (1, [2]), {1: {2}}, frozenset('a'), range(3), bytearray(b'y')):\n"
         "    assert f(v) == v and type(f(v)) is type(v), v"),
        ("import collections\ndef f(t): return collections.Counter(t)", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("import fractions\ndef f(n): return fractions.Fraction(n, 2)", "assert f(3) * 2 == 3"),
        ("def f(): return float('nan')", "assert f() != f()"),
        ("class C(int): pass\ndef f(n): return C(n)", "assert f(3) == 3 and f(3) + 1 == 4 and 2 < f(3) < 4"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
         "assert f() == (1, 2) and f().x == 1\nx, y = f()\nassert y == 2"),
        ("def f(xs): xs.sort(); return xs", "xs = [2, 1]\nassert f(xs) is xs and xs == [1, 2]"),
        ("def f(d): d['a'].append(d.pop('b'))", "d = {'a': [], 'b': 1}\nf(d)\nassert d == {'a': [1]}"),
        ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x + 1, range(2)) == [1, 2]\n"
         "assert f(int, '12') == [1, 2]"),
        ("def f(g):\n    seen = {}\n    def h(x):\n        if x not in seen: seen[x] = g(x)\n        return seen[x]\n"
         "    return h", "calls = []\nh = f(lambda x: calls.append(x) or x)\nassert h(1) == h(1) == 1 and calls == [1]\n"
         "@f\ndef g(x): return x * 2\nassert g(2) == 4"),
        ("def f(g): return g", "def g(): pass\nassert f(g) is g"),
        ("def f(xs): return sum(xs)", "assert f(iter([1, 2])) == f(x for x in (1, 2)) == f({1: 0, 2: 0}.keys()) == 3"),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]\ng = f(1)\nassert next(g) == 0\n"
         "try: next(g)\nexcept StopIteration: pass\nelse: assert False"),
        ("def f(x):\n    if x < 0: raise ValueError('negative')", "try: f(-1)\nexcept ValueError as e: "
         "assert str(e) == 'negative'\nelse: assert False"),
        ("class Bad(KeyError): pass\ndef f(): raise Bad('k')", "try: f()\nexcept Bad as e: assert e.args == ('k',)\n"
         "try: f()\nexcept KeyError: pass\ntry:\n    raise Bad\nexcept answer.Bad: pass"),
        ("import json\ndef f(t): return json.loads(t)", "import json\ntry: f('{')\nexcept json.JSONDecodeError: pass\n"
         "assert f('[1]') == [1]"),
        ("def f(g):\n    try: return g()\n    except ZeroDivisionError as e: return 'caught'", "assert f(lambda: 1 / 0) == 'caught'"),
        ("async def f(x): return x", "import asyncio\nassert asyncio.run(f(1)) == 1\n"
         "async def both(): return [await f(2), await f(3)]\nassert asyncio.run(both()) == [2, 3]"),
        ("def f(): print('hello')", "import contextlib, io\nout = io.StringIO()\nwith contextlib.redirect_stdout(out): f()\n"
         "assert out.getvalue() == 'hello\\n'"),
        ("def sum(xs): return -1\ndef bisect(x): return x", "assert answer.sum([1]) == -1 and sum([1]) == 1\n"
         "from answer import sum\nassert sum([]) == -1\nassert bisect(3) == 3\nassert math.floor(1.5) == 1"),
        ("import math\nN = 3\ndef f(): return N", "import answer\nassert N == 3\nanswer.f.x = 5\nassert f.x == 5 and f() == 3"),
        (VECTOR, "v = Vector(3, 4)\nassert v.x == 3 and v.total == 7 and abs(v) == 5 and len(v) == 2 and v[1] == 4\n"
         "assert v + Vector(1, 1) == Vector(4, 5) and v * 2 == 2 * v == Vector(6, 8) and v != Vector(0, 0)\n"
         "assert 3 in v and 9 not in v and str(v) == f'{v}' == '<3, 4>' and Vector(1, 0) < v\n"
         "assert v in {Vector(3, 4)} and isinstance(v, Vector) and not isinstance(3, Vector) and v is not None\n"
         "v.x = 1\nassert v.x == 1 and hasattr(v, 'y') and not hasattr(v, 'z')\n"
         "with v as w: assert w is v\nassert v.left is False\nassert max(v, Vector(2, 0)).x == 2\n"
         "assert sorted([Vector(2, 0), v])[0] is v\nassert v.__mul__(3).x == 3"),
        ("import enum\nclass Color(enum.Enum):\n    RED = 1\ndef f(): return Color.RED", "assert f() is Color.RED"),
        ("def f(x, *rest, key=None): return (x, rest, key)", "def check(candidate):\n    assert candidate(1, 2, key=3) == (1, (2,), 3)\n"
         "check(f)"),
        ("def f(): return 1\nif __name__ == '__main__':\n    raise ValueError", "assert f() == 1"),
        ("x = []\nx.append(x)\ndef f(): return x", "assert f()[0][0] is not None"),
    ],
)  # fmt: skip
async def test_right_programs_pass(program: str, tests: str) -> None:
    assert await run(program, tests) == Verdict(True)


async def test_a_wrong_program_fails_with_the_failed_test() -> None:
    verdict = await run("def f(x): return x", "assert f(1) == 1\nassert f(2) == 3")
    assert verdict == Verdict(False, "AssertionError in line 2 of the tests: assert f(2) == 3")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("", "holds no Python"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('x')", "ValueError: x in line 1 of the answer"),
        ("x" * (sandbox.MAX_PROGRAM_CHARACTERS + 1), "longer than"),
        ("x = bytearray(10**9)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "MemoryError"),
        ("open('big', 'wb').write(bytes(10**8))", "OSError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import subprocess; subprocess.run(['true'])", "Error"),
        ("files = [open('x', 'w') for _ in range(100)]", "Too many open files"),
    ],
)
async def test_a_program_that_cannot_run_or_takes_too_much_fails(program: str, why: str) -> None:
    verdict = await run(program)
    assert not verdict.passed
    assert why in verdict.why


async def test_a_program_that_sleeps_is_stopped_by_the_clock() -> None:
    verdict = await run("import time; time.sleep(600)", bounds=Bounds(wall_seconds=0.5))
    assert "longer than 0.5 s" in verdict.why


async def test_a_private_folder_can_be_written_and_is_new_in_every_run() -> None:
    program = (
        "import os\nopen('here', 'x').write('x')\ndef f(): return (os.getcwd(), os.listdir(), open('here').read())"
    )
    for _ in range(2):
        assert (await run(program, "assert f() == ('/tmp', ['here'], 'x')")).passed


async def test_tests_that_pass_objects_of_their_own_are_unusable_and_no_fault_of_the_answer() -> None:
    verdict = await run("def f(x): return x", "class Node: pass\nf(Node())")
    assert verdict.unusable
    assert "the tests pass a Node" in verdict.why
    assert "in line 2 of the tests" in verdict.why


async def test_a_cancelled_run_leaves_no_process() -> None:
    pids: list[int] = []
    real = asyncio.create_subprocess_exec

    async def noted(*words: object, **options: object) -> asyncio.subprocess.Process:
        process = await real(*words, **options)  # type: ignore[arg-type]
        pids.append(process.pid)
        if len(pids) == 2:
            started.set()
        return process

    started = asyncio.Event()
    sandbox = Sandbox(BOUNDS)
    await sandbox.check()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "create_subprocess_exec", noted)
        task = asyncio.create_task(sandbox.run("import time; time.sleep(600)", "assert True"))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIG_DFL)


async def test_a_run_can_be_cancelled_at_any_moment_of_its_start() -> None:
    """asyncio can wait forever for the pipes of a process whose start is cancelled."""
    sandbox = Sandbox(BOUNDS)
    await sandbox.check()
    for steps in range(24):
        task = asyncio.create_task(sandbox.run("import time; time.sleep(600)", "assert True"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=60)
        assert done == {task}, f"cancelled after {steps} iterations of the event loop"
        assert task.cancelled()


async def test_code_is_refused_where_bubblewrap_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "BUBBLEWRAP", "no-such-bwrap")
    with pytest.raises(ConfigError, match=r"not installed here: .*apt-get install bubblewrap.*--unsafe"):
        await Sandbox(BOUNDS).run("x = 1", "assert True")


async def test_code_is_refused_where_bubblewrap_may_not_make_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "bwrap"
    stand_in.write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(isolation, "BUBBLEWRAP", str(stand_in))
    with pytest.raises(ConfigError, match=r"does not work here \(bwrap: Creating new namespace failed\).*--unsafe"):
        await Sandbox(BOUNDS).run("x = 1", "assert True")


@pytest.mark.parametrize(
    ("option", "leak"),
    [
        ("--unshare-pid", "signals to other processes"),
        ("--unshare-net", "TCP to this machine"),
    ],
)
async def test_code_is_refused_where_a_namespace_is_not_private(
    option: str, leak: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "bwrap"
    stand_in.write_text(
        '#!/bin/sh\nfor word; do shift; [ "$word" = ' + option + ' ] || set -- "$@" "$word"; done\n'
        f'exec {shutil.which("bwrap")} "$@"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(isolation, "BUBBLEWRAP", str(stand_in))
    with pytest.raises(ConfigError, match=leak):
        await Sandbox(BOUNDS).check()


async def test_unsafe_runs_without_bubblewrap_and_decides_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "BUBBLEWRAP", "no-such-bwrap")
    sandbox = Sandbox(BOUNDS, unsafe=True)
    assert (await sandbox.run("def f(): return 1", "assert f() == 1")).passed
    assert "assert f() == 2" in (await sandbox.run("def f(): return 1", "assert f() == 2")).why


def test_the_check_finds_what_is_open_to_this_process(tmp_path: Path) -> None:
    with isolation.leak_probe() as program:
        names: dict[str, Any] = {}
        program = program.replace("os.kill, -1, 0", "os.kill, os.getpid(), 0").replace("os.fork", "os.getpid")
        exec(program.replace("/made", str(tmp_path / "made")), names)
        found = names["leaks"]()
    sockets = {"Unix sockets", "abstract Unix sockets", "TCP to this machine"}
    assert sockets | {"reading files", "writing files", "new processes"} <= set(found)
