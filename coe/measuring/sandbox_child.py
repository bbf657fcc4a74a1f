"""Runs an answer and its tests, in a process of its own that the module `sandbox` starts. Standard library alone.

Standard input has two lines of JSON: the limits and the answer, then the tests and a token. The second line is read
after the answer's code has run. The process writes the token if the tests passed, else why not.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
from traceback import walk_tb
from types import ModuleType
from typing import Any

MAX_OPEN_FILES = 32
MAX_WHY = 300
"""Characters of the reason of a failure."""
_FORBIDDEN_CALLS = {  # by machine: its number for the kernel, and clone, clone3, fork, vfork, unshare, shmget
    "x86_64": (0xC000003E, (56, 435, 57, 58, 272, 29)),
    "aarch64": (0xC00000B7, (220, 435, 97, 194)),
}
_X32_CALLS = 0x40000000
"""Numbers from here on are a second set on x86_64."""
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _TRY_AGAIN = 0x7FFF0000, 0x80000000, 0x0005000B
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


def main() -> None:
    """Run the task and end the process. The answer's own standard streams lead nowhere."""
    with os.fdopen(os.dup(0), "rb") as task:
        report = os.dup(1)
        given = json.loads(task.readline())
        _confine(given["limits"])
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        part, text = "answer", given["answer"]
        module = sys.modules[part] = ModuleType(part)
        try:
            exec(compile(text, part, "exec", dont_inherit=True), vars(module))  # noqa: S102
            given = json.loads(task.readline())
            part, text = "tests", given["tests"]
            exec(compile(text, part, "exec", dont_inherit=True), vars(module))  # noqa: S102
            message = given["token"]
        except BaseException as error:
            message = _reason(part, text, error)
    os.write(report, message.encode("utf-8", "replace"))
    os._exit(0)  # without the answer's exit handlers and threads


def _confine(limits: dict[str, Any]) -> None:
    """Bound the resources of this process and forbid new processes. Skips what the system lacks."""
    wanted = {
        "RLIMIT_AS": (limits["memory_bytes"],) * 2,
        "RLIMIT_CPU": (limits["cpu_seconds"], limits["cpu_seconds"] + 1),
        "RLIMIT_FSIZE": (limits["disk_bytes"],) * 2,
        "RLIMIT_NOFILE": (MAX_OPEN_FILES,) * 2,
        "RLIMIT_NPROC": (0, 0),
        "RLIMIT_CORE": (0, 0),
    }
    for name, limit in wanted.items():
        try:
            resource.setrlimit(getattr(resource, name), limit)
        except (AttributeError, ValueError, OSError):  # macOS refuses some
            continue
    if sys.platform == "linux" and os.uname().machine in _FORBIDDEN_CALLS:
        _forbid_calls(*_FORBIDDEN_CALLS[os.uname().machine])


def _forbid_calls(machine: int, calls: tuple[int, ...]) -> None:
    """Make system calls fail with EAGAIN by a filter. RLIMIT_NPROC does not hold root.

    Shared memory and new namespaces would hold memory that no limit counts.
    """
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, machine), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    tests = [(_AT_LEAST, _X32_CALLS), *((_EQUAL, call) for call in calls)]
    steps += [(test, len(tests) - index, 0, number) for index, (test, number) in enumerate(tests)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _TRY_AGAIN)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, header, 0, 0)):
        if libc.prctl(*words) != 0:
            raise OSError(ctypes.get_errno(), "the filter of system calls is refused")


def _reason(part: str, text: str, error: BaseException) -> str:
    """The error and the line of the answer or the tests where it arose, in one line."""
    try:
        described = f"{type(error).__name__}: {error}".rstrip(": ")
    except BaseException:  # its own __str__ may be part of the answer
        described = type(error).__name__
    line = None
    for frame, number in walk_tb(error.__traceback__):
        line = number if frame.f_code.co_filename == part else line
    source = f" in line {line} of the {part}: {text.splitlines()[line - 1].strip()}" if line else f" in the {part}"
    return " ".join(f"{described[: 10 * MAX_WHY]}{source}".split())[:MAX_WHY]


if __name__ == "__main__":
    main()
