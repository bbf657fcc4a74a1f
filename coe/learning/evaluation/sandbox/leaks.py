"""The check that the sandbox isolates: a program that tries to reach what the calling process put up for it."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

TESTS = "import fractions\nassert half(3) == fractions.Fraction(3, 2)\nfound = leaks()\nassert found == [], found"
TESTS_BARE = "import fractions\nassert half(3) == fractions.Fraction(3, 2)"
"""Where there is no isolation to check."""

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
