"""Runs inside the sandboxed process: gives up what it can, then runs one answer and its tests, and says how it went.

Started by coe/learning/sandbox.py as a script, `python -I -S jail.py`, with a JSON task on standard input; imports the
standard library alone. It writes two lines to its standard output: what it gave up, before the answer runs; and behind
the task's secret token the verdict, `passed` or what went wrong. An answer never sees that output: its own goes to
/dev/null. (It could find the secret in the interpreter's frames if it set out to; it cannot by printing.)
"""
# every program pays for this start, and pathlib is 5 ms of it
# ruff: noqa: PTH109, PTH102, PTH120, PTH123

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
from types import ModuleType, TracebackType
from typing import Any, NoReturn

NOBODY = 65534
LONGEST = 300
"""Characters told about a failure."""
_NEW_USER, _NEW_MOUNTS, _NEW_NETWORK, _NEW_IPC = 0x10000000, 0x00020000, 0x40000000, 0x08000000
_NO_NEW_PRIVILEGES = 38
_MOUNT_SETATTR, _RECURSIVE, _READ_ONLY, _PRIVATE, _BIND = 442, 0x8000, 1, 1 << 18, 4096


def main() -> NoReturn:
    """The whole life of the process."""
    task = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.write(report, " ".join(_give_up(task)).encode() + b"\n")
    verdict = _run(task["answer"], task["tests"])
    os.write(report, f"{task['token']} {verdict}\n".encode("utf-8", "replace"))
    os._exit(0)


# -------------------------------------------------------------------------------------------------------- giving up


def _give_up(task: dict[str, Any]) -> list[str]:
    """Give up network, files and rights where the machine allows, bound the rest; returns what is given up."""
    libc = ctypes.CDLL(None, use_errno=True)
    given_up = []
    root = os.geteuid() == 0
    with contextlib.suppress(OSError, AttributeError):
        _leave_network(libc, root=root)
        given_up.append("network")
        _leave_files(libc, root=root, size=task["disk_bytes"])
        given_up.append("files")
    with contextlib.suppress(AttributeError):
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _bound(task)
    if root:
        _become_nobody()
        given_up.append("root")
    else:
        _drop_capabilities(libc)
    return given_up


def _leave_network(libc: ctypes.CDLL, *, root: bool) -> None:
    """A network namespace holds nothing but a loopback that is down; one of mounts lets files be taken away next."""
    user, group = os.geteuid(), os.getegid()
    _checked(libc.unshare(_NEW_NETWORK | _NEW_MOUNTS | _NEW_IPC | (0 if root else _NEW_USER)))
    if not root:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)


def _leave_files(libc: ctypes.CDLL, *, root: bool, size: int) -> None:
    """Every file becomes read-only but those in a small memory disk, which is the working folder."""
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, _PRIVATE, 0)
    _checked(libc.syscall(_MOUNT_SETATTR, -100, b"/", _RECURSIVE, attributes, ctypes.sizeof(attributes)))
    folder = os.getcwd().encode()
    owner = f",uid={NOBODY},gid={NOBODY}" if root else ""
    _checked(
        libc.mount(b"tmpfs", folder, b"tmpfs", 6, f"size={size},mode=700{owner}".encode())
    )  # no setuid, no devices
    os.chdir(folder)
    if root:  # the standard library may stand where only root may look, and root is what this process gives up
        here = folder + b"/.python"
        os.mkdir(here)
        library = os.path.dirname(os.__file__)
        _checked(libc.mount(library.encode(), here, None, _BIND, None))
        _look_for_modules(library, here.decode())


def _look_for_modules(old: str, new: str) -> None:
    for paths in (sys.path, *(getattr(module, "__path__", []) for module in list(sys.modules.values()))):
        paths[:] = [path.replace(old, new) for path in paths]


def _become_nobody() -> None:
    os.chown(".", NOBODY, NOBODY)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Those that the new user namespace gave; with them the files could be made writable again."""
    with contextlib.suppress(AttributeError):
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def _bound(task: dict[str, Any]) -> None:
    """No processes and no threads (root would be exempt, so it is given up next); little memory, time and disk."""
    limits = {
        "RLIMIT_AS": (task["memory_bytes"],) * 2,
        "RLIMIT_CPU": (task["cpu_seconds"], task["cpu_seconds"] + 1),
        "RLIMIT_FSIZE": (task["disk_bytes"],) * 2,
        "RLIMIT_NOFILE": (32, 32),
        "RLIMIT_NPROC": (0, 0),
        "RLIMIT_CORE": (0, 0),
    }
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(getattr(resource, name), limit)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# ---------------------------------------------------------------------------------------------------------- running


def _run(answer: str, tests: str) -> str:
    """`passed`, or in one line what went wrong. The answer is a module, so its `__main__` part does not run."""
    module = ModuleType("answer")
    sys.modules["answer"] = module
    for part, text in (("answer", answer), ("tests", tests)):
        try:
            exec(compile(text, part, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 -- this is what it is for
        except BaseException as error:
            return _told(part, text, error)
    return "passed"


def _told(part: str, text: str, error: BaseException) -> str:
    """The error, and the line of the tests (or else of the answer) where it arose."""
    if isinstance(error, SystemExit):
        return f"the {part} left the interpreter (sys.exit)"
    line = _line_in(part, error.__traceback__) or (error.lineno if isinstance(error, SyntaxError) else None)
    lines = text.splitlines()
    where = f" in line {line} of the {part}" if line else f" in the {part}"
    source = f": {lines[line - 1].strip()}" if line and line <= len(lines) and part == "tests" else ""
    try:
        message = f"{type(error).__name__}: {error}"
    except BaseException:  # its own __str__ is part of the answer
        message = type(error).__name__
    return " ".join(f"{message.rstrip(': ')}{where}{source}".split())[:LONGEST]


def _line_in(part: str, traceback: TracebackType | None) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == part:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


if __name__ == "__main__":
    main()
