"""Isolates a sandboxed process: its command line by bubblewrap, and a program that tests the isolation.

Where the user accepts that, the command line runs the process without bubblewrap. The program tries to reach a file and
sockets that the calling process opened for it, to signal other processes, and to start new ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import coe
import coe.learning
from coe.learning.evaluation import sandbox_child

BUBBLEWRAP = "bwrap"
REMEDY = (
    "install bubblewrap (apt-get install bubblewrap) on a machine that allows namespaces, leave out probes with "
    "checker 'code', or pass --unsafe to run the code with the rights of this user"
)
_PACKAGES = "/coe-packages"
_WORKING_FOLDER = "/tmp"  # noqa: S108 -- a private one
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
_PRIVATE_NAMESPACES = ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
_ROOT_NEEDS = ("CAP_SETUID", "CAP_SETGID", "CAP_SYS_ADMIN")
"""Capabilities that the process needs to give up the rest."""

Part = Literal["answer", "examiner"]


def installed() -> bool:
    return shutil.which(BUBBLEWRAP) is not None


def command(part: Part, words: Sequence[str], *, limits: dict[str, Any], unsafe: bool) -> list[str]:
    """The command line of one process; `words` follow the limits."""
    packages = str(Path(coe.__file__).parents[1]) if unsafe else _PACKAGES
    start = (
        f"import sys; sys.path.append({packages!r}); from coe.learning.evaluation.sandbox_child.{part} import main; "
        f"sys.path.remove({packages!r}); main()"
    )
    encoded_limits = json.dumps({**limits, "isolated": not unsafe})
    python = [_executable(), "-I", "-S", "-B", "-c", start, encoded_limits, *words]
    return python if unsafe else [BUBBLEWRAP, *_isolation(limits["disk_bytes"]), "--", *python]


def _isolation(disk_bytes: int) -> Iterator[str]:
    """Root keeps its user namespace, so that the process can switch to the user `nobody`; other users need a new
    namespace."""
    yield from (*_PRIVATE_NAMESPACES, "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL")
    if os.geteuid() == 0:
        for capability in _ROOT_NEEDS:
            yield from ("--cap-add", capability)
    else:
        yield from ("--unshare-user", "--cap-add", "CAP_SYS_ADMIN")
    for path in dict.fromkeys(_readable()):
        for folder in reversed(Path(path).parents[:-1]):  # as bubblewrap makes them, nobody may not enter all of them
            yield from ("--perms", "0755", "--dir", str(folder))
        yield from ("--ro-bind", path, path)
    for source, place in _code():
        yield from ("--ro-bind", source, f"{_PACKAGES}/{place}")
    for path in _third_party():
        yield from ("--tmpfs", path, "--remount-ro", path)
    for device in ("/dev/null", "/dev/urandom"):
        yield from ("--dev-bind", device, device)
    yield from ("--perms", "0777", "--size", str(disk_bytes), "--tmpfs", _WORKING_FOLDER, "--chdir", _WORKING_FOLDER)
    yield from ("--remount-ro", "/")


def _executable() -> str:
    """The interpreter itself, not the link to it in a virtual environment."""
    return str(Path(sys.executable).resolve())


def _readable() -> Iterator[str]:
    """Paths that the interpreter needs: itself, the standard library and shared libraries."""
    prefix = Path(sys.base_prefix)
    wanted = [*_LIBRARIES, "/etc/ld.so.cache", _executable(), sysconfig.get_path("stdlib")]
    yield from (path for path in wanted if Path(path).exists())
    yield from map(str, sorted((prefix / "lib").glob("libpython*.so*")))


def _third_party() -> Iterator[str]:
    """Folders of installed packages within what is readable; they are hidden."""
    library = Path(sysconfig.get_path("stdlib"))
    for folder in (library / "site-packages", library / "dist-packages", Path("/usr/lib/python3/dist-packages")):
        if folder.is_dir():
            yield str(folder)


def _code() -> Iterator[tuple[str, str]]:
    """The files of this project that run inside."""
    for module in (coe, coe.learning):
        yield str(module.__file__), f"{module.__name__.replace('.', '/')}/__init__.py"
    yield str(Path(str(sandbox_child.__file__)).parent), sandbox_child.__name__.replace(".", "/")


TESTS = "import fractions\nassert half(3) == fractions.Fraction(3, 2)\nfound = leaks()\nassert found == [], found"
TESTS_BARE = "import fractions\nassert half(3) == fractions.Fraction(3, 2)"
"""A check that always passes, for runs without isolation."""

_PROGRAM = """\
import bisect, decimal, fractions, os, socket

def half(n):
    return fractions.Fraction(n, 2)

def leaks():
    found = []
    def attempt(name, function, *words):
        try:
            function(*words)
        except OSError:
            return
        found.append(name)
    attempt("signals to other processes", os.kill, -1, 0)
    attempt("the signal to the calling process", os.kill, {pid}, 0)
    for name, family, address in {sockets}:
        with socket.socket(family) as one:
            one.settimeout(5)
            attempt(name, one.connect, address)
    attempt("reading files", os.listdir, os.path.dirname({file!r}))
    attempt("writing files", os.truncate, {file!r}, 0)
    attempt("writing the root folder", os.mkdir, "/made")
    attempt("new processes", os.fork)
    if os.geteuid() == 0:
        found.append("root")
    if set(os.environ) - {{"PWD", "LC_CTYPE"}}:
        found.append("the environment")
    return found
"""


@contextlib.contextmanager
def leak_probe() -> Iterator[str]:
    """The program, with a file and listening sockets that it would reach if it were not isolated."""
    with tempfile.TemporaryDirectory(prefix="coe-sandbox-") as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "file"
        file.touch(mode=0o666)
        Path(folder).chmod(0o755)
        addresses: list[tuple[str, socket.AddressFamily, str | tuple[str, int]]] = [
            ("Unix sockets", socket.AF_UNIX, str(Path(folder) / "socket")),
            ("TCP to this machine", socket.AF_INET, ("127.0.0.1", 0)),
        ]
        if os.uname().sysname == "Linux":
            addresses.append(("abstract Unix sockets", socket.AF_UNIX, f"\0coe-sandbox-{secrets.token_hex(8)}"))
        sockets = []
        for name, family, address in addresses:
            one = stack.enter_context(socket.socket(family))
            one.bind(address)
            one.listen()
            if isinstance(address, str) and not address.startswith("\0"):
                Path(address).chmod(0o666)
            sockets.append((name, int(family), one.getsockname()))
        yield _PROGRAM.format(pid=os.getpid(), sockets=repr(sockets), file=str(file))
