"""Starts and confines a sandboxed process: bounded resources, no privileges, no system call that starts a process.

bubblewrap sets up namespaces and the file system. This module closes what bubblewrap leaves open: memory that no
process limit counts (System V shared memory, new tmpfs mounts, many files), new processes, and user namespaces. It also
formats failures as one line, for both processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import struct
import sys
from types import TracebackType
from typing import Any

import coe

NOBODY = 65534
MAX_OPEN_FILES = 32
MAX_INODES = 1024
"""Files in the private folder; an empty one takes a kilobyte of kernel memory."""
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_REMOUNT, _NO_SETUID, _NO_DEVICES = 32, 2, 4
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_AGAIN, _NOT_PERMITTED = 11, 1
_STARTING = ("clone", "clone3", "fork", "vfork")
_X32_BIT = 0x40000000
_SAME_EVERYWHERE = {  # system calls since Linux 5.0 have one number on all machines
    "io_uring_setup": 425,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fspick": 433,
    "clone3": 435,
    "mount_setattr": 442,
    "memfd_secret": 447,
}
_CALLS: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "execveat": 322, "unshare": 272, "setns": 308,
            "mount": 165, "umount2": 166, "pivot_root": 155, "ptrace": 101, "process_vm_readv": 310,
            "process_vm_writev": 311, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319,
            "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "userfaultfd": 323, "perf_event_open": 298,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "clone": 220, "execve": 221, "execveat": 281, "unshare": 97, "setns": 268, "mount": 40, "umount2": 39,
            "pivot_root": 41, "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "shmget": 194,
            "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279, "add_key": 217, "request_key": 218,
            "keyctl": 219, "bpf": 280, "userfaultfd": 282, "perf_event_open": 241,
        },
    ),
}  # fmt: skip


def confine(limits: dict[str, Any]) -> None:
    """Confine this process: bound its resources, drop its privileges and forbid system calls.

    Inside bubblewrap (`isolated`), raises OSError if a measure fails or the machine has no table of system calls.
    Outside it, privileges and the file system stay as they are, and measures that the system lacks are skipped.
    """
    isolated = limits["isolated"]
    for name in coe.NO_USAGE_REPORTS:  # set by the import of the package; the environment is empty otherwise
        os.environ.pop(name, None)
    libc = ctypes.CDLL(None, use_errno=True)
    if isolated:
        _bound_files(libc, limits["disk_bytes"])
    _bound_resources(limits)
    if isolated:
        _drop_privileges(libc)
    if sys.platform == "linux":
        _succeed(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _forbid_system_calls(libc, required=isolated)


def _bound_files(libc: ctypes.CDLL, size: int) -> None:
    options = f"size={size},nr_inodes={MAX_INODES}".encode()
    _succeed(libc.mount(b"tmpfs", b".", b"tmpfs", _REMOUNT | _NO_SETUID | _NO_DEVICES, options))


def _bound_resources(limits: dict[str, Any]) -> None:
    wanted = {
        "RLIMIT_AS": (limits["memory_bytes"],) * 2,
        "RLIMIT_CPU": (limits["cpu_seconds"], limits["cpu_seconds"] + 1),
        "RLIMIT_FSIZE": (limits["disk_bytes"],) * 2,
        "RLIMIT_NOFILE": (MAX_OPEN_FILES,) * 2,
        "RLIMIT_NPROC": (0, 0),
        "RLIMIT_CORE": (0, 0),
    }
    for name, limit in wanted.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some
            resource.setrlimit(getattr(resource, name), limit)


def _drop_privileges(libc: ctypes.CDLL) -> None:
    """Root becomes the user `nobody`, which drops all capabilities. Others drop those of their user namespace."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _succeed(libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()))


def _forbid_system_calls(libc: ctypes.CDLL, *, required: bool) -> None:
    machine = os.uname().machine
    if machine not in _CALLS:
        if required:
            raise OSError(f"no table of system calls for the machine {machine}")
        return
    program = _filter(*_CALLS[machine])
    instructions = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    _succeed(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(header), 0, 0))


def _filter(architecture: int, calls: dict[str, int]) -> bytes:
    """A BPF program: another architecture's call kills, a forbidden one fails, the rest are allowed."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    forbidden = {**calls, **_SAME_EVERYWHERE}
    starting = [number for name, number in forbidden.items() if name in _STARTING]
    other = [number for name, number in forbidden.items() if name not in _STARTING]
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    tests = [(at_least, _X32_BIT, False), *((equal, n, True) for n in starting), *((equal, n, False) for n in other)]
    for index, (code, number, starts) in enumerate(tests):
        left = len(tests) - index - 1
        lines.append((code, left + (1 if starts else 2), 0, number))
    lines += [(give, 0, 0, _ALLOW), (give, 0, 0, _ERROR | _AGAIN), (give, 0, 0, _ERROR | _NOT_PERMITTED)]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _succeed(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


MAX_WHY = 300
"""Characters of the reason of a failure."""


def detached() -> tuple[int, int]:
    """Confine the process; returns copies of standard input and output, which no longer lead anywhere."""
    limits = json.loads(sys.argv[1])
    copies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    confine(limits)
    os.dup2(nothing, 2)  # only now: a failure until here is reported there
    os.close(nothing)
    return copies


def reason(part: str, text: str, error: BaseException) -> str:
    """The error, and the line of the tests (or else of the answer) where it arose, in one line."""
    if isinstance(error, SystemExit):
        return f"the {part} left the interpreter (sys.exit)"
    line = _line_in(part, error.__traceback__) or (error.lineno if isinstance(error, SyntaxError) else None)
    lines = text.splitlines()
    where = f" in line {line} of the {part}" if line else f" in the {part}"
    source = f": {lines[line - 1].strip()}" if line and line <= len(lines) and part == "tests" else ""
    return one_line(f"{described(error)}{where}{source}")


def described(error: BaseException) -> str:
    """The name of an error and its message, where it has one that can be formatted."""
    try:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    except BaseException:  # its own __str__ may be part of the answer
        return type(error).__name__


def one_line(text: str) -> str:
    return " ".join(text[: 10 * MAX_WHY].split())[:MAX_WHY]


def _line_in(part: str, traceback: TracebackType | None) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == part:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
