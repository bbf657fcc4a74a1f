"""Starts modules as processes that need not import the product: forks of a template process that has imported it.

The imports of a gateway or a command take over a second of processor time, and tests start some hundred of them.
`python` returns the words that subprocess and asyncio start: on other systems than Linux on x86-64, and where the C
library hides the thread's number, those of a plain `python -m`. Tests of the interpreter's own settings, a terminal,
limits that a process inherits, or the order of sets start `sys.executable`: a fork has the settings, the limits and the
hash seed of the template.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import os
import pickle
import platform
import runpy
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

import coe

ROOT = Path(__file__).parent.parent
IMPORTED = ("coe.cli", "gateway.main", "gateway.process.processes", "tests.fakes")
_WORD = "python, forked"
_MESSAGE_BYTES = 200_000
_MACHINE, _CLONE = "x86_64", 56
"""The architecture, and there the number of the system call; elsewhere its arguments have another order."""
_PR_GET_TID_ADDRESS = 40
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x200000, 0x1000000

_libc = ctypes.PyDLL(None)  # keeps the interpreter's lock during a call


def python(module: str, *words: str | Path) -> tuple[str, ...]:
    """Return the words of a command that runs the module with these arguments."""
    if _template is None:
        return (sys.executable, "-m", module, *map(str, words))
    return (_WORD, module, *map(str, words))


def children() -> list[psutil.Process]:
    """Return the processes that this one started, and theirs; the template is not among them."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if _template is None or one.pid != _template.pid]


def restore_interrupts() -> None:
    """Handle SIGINT, which the processes of a background job ignore: a `preexec_fn`. A fork does so in any case."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _Template:
    """The template process, which starts with the first command."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process and self._process.pid

    def fork_exec(self, args: Any, *more: Any) -> int:
        """Replace the function of the same name by which subprocess starts a process; the order is that of its
        arguments. Return the number of the process."""
        if os.fsdecode(args[0]) != _WORD:
            return _fork_exec(args, *more)
        (_, _, files_kept, cwd, environ, stdin, _, _, stdout, _, stderr, _, _, _, new_session) = more[:15]
        assert len(files_kept) == 1, "a fork has no pass_fds"  # subprocess's own pipe
        assert more[15] == -1, "a fork has no process_group"
        assert more[20] in (None, restore_interrupts), "a fork has no preexec_fn"
        start = {
            "words": [os.fsdecode(word) for word in args[1:]],
            "folder": os.fsencode(cwd or Path.cwd()),
            "environ": dict(os.environb) if environ is None else dict(line.split(b"=", 1) for line in environ),
            "new_session": new_session,
        }
        files = [given if given != -1 else own for own, given in enumerate((stdin, stdout, stderr))]
        with self._lock:
            self._connection = connection = self._connection or self._started()
            socket.send_fds(connection, [pickle.dumps(start)], files)
            if not (process := connection.recv(100)):
                assert self._process is not None
                raise RuntimeError(f"the template process ended with code {self._process.wait()}")
            return int(process)

    def _started(self) -> socket.socket:
        own, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with others:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "tests.forked", str(others.fileno())),
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # or BLAS has threads, which a fork lacks
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(others.fileno(),),
            )
        atexit.register(self._stop)
        return own

    def _stop(self) -> None:
        assert self._connection
        assert self._process
        self._connection.close()
        self._process.kill()
        self._process.wait()


def _serve(connection: socket.socket) -> dict[str, Any]:
    """Fork a process for each request until the tests end. Return, in a fork, the request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the tests, which end this process
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all their pages
    while True:
        message, files, *_ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
        if not message:
            sys.exit()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the fork has its own handler
        process = _fork()
        if process == 0:
            for number, file in enumerate(files):
                os.dup2(file, number)
        for file in files:
            os.close(file)
        if process == 0:
            connection.close()
            request: dict[str, Any] = pickle.loads(message)
            return request
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        connection.send(str(process).encode())


def _fork() -> int:
    """Fork like os.fork, but as a child of this process's parent, which can then wait for it."""
    assert len(list(Path("/proc/self/task").iterdir())) == 1, f"one of {IMPORTED} starts threads, which a fork lacks"
    flags = signal.SIGCHLD | _CLONE_PARENT | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID
    ctypes.pythonapi.PyOS_BeforeFork()
    process: int = _libc.syscall(_CLONE, flags, None, None, _thread_address(), None)
    if process == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    assert process >= 0, "clone failed"
    return process


def _thread_address() -> ctypes.c_void_p | None:
    """Return where the C library has the number of the main thread; None on a system that does not say."""
    address = ctypes.c_void_p()
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0):
        return None
    return address


def _become(words: list[str], folder: bytes, environ: dict[bytes, bytes], new_session: bool) -> None:
    """Run `python -m` with these words, as a process of its own would do."""
    if new_session:
        os.setsid()
    restore_interrupts()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.chdir(folder)
    os.environb.clear()
    os.environb.update(environ)
    for name, value in coe.NO_USAGE_REPORTS.items():  # as an import of the package does
        os.environ.setdefault(name, value)
    sys.path[0] = str(Path.cwd())
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


_fork_exec = subprocess._fork_exec  # type: ignore[attr-defined]
_template: _Template | None = None
if __name__ != "__main__" and sys.platform == "linux" and platform.machine() == _MACHINE and _thread_address():
    _template = _Template()
    subprocess._fork_exec = _template.fork_exec  # type: ignore[attr-defined]

if __name__ == "__main__":
    _become(**_serve(socket.socket(fileno=int(sys.argv[1]))))
