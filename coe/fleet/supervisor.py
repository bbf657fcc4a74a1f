"""A small process that runs one server and ends everything it started: `supervisor.py PARENT GRACE ARGV...`

It ends every process that the server started, whatever group or session it moved to, when

- it receives SIGTERM,
- the server itself exits, which orphans its workers,
- its parent dies, even by SIGKILL: the kernel then sends it SIGTERM (Linux, PR_SET_PDEATHSIG).

It finds orphans because it is their subreaper (Linux): they become its children instead of init's. The kernel watches
the *thread* that forked the supervisor, not its process, so start it from the thread of the event loop and never from a
pool's. An exec wrapper could set the same signal for the server alone, since workers do not inherit it. A preexec
function would run Python between fork and exec in a process that has threads.

Not covered: SIGKILL of the supervisor itself ends the server, but not the server's workers. On other systems than
Linux, the supervisor does not notice that its parent was killed by SIGKILL.

If the parent may end its children by SIGKILL (Ray), one supervisor runs another whose PARENT is 0. The inner one gets
SIGKILL together with the outer one until it has requested SIGTERM instead, so neither is lost.

Run it as a script, by path: it imports nothing of CoE and starts in about 50 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def main(parent: int, grace: float, argv: list[str]) -> int:
    """Runs `argv` to its end and returns its exit code, 128 + N after signal N, as shells do."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)  # pending until sigwait, so none is missed
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent and os.getppid() != parent:  # it died before the prctl call
        return 128 + signal.SIGTERM
    try:
        # This process has one thread, so a preexec function is safe here.
        server = subprocess.Popen(  # noqa: S603  the caller's own command line
            argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=partial(_become_server, os.getpid())
        )
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error.strerror}\n")
        return 127
    code = _wait(server.pid)
    _end_all(grace)
    return code


def _become_server(supervisor: int) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before the prctl call, so no signal will come
        os._exit(128 + signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _AWAITED)


def _wait(server: int) -> int:
    """Waits until the server exits or the supervisor receives a signal."""
    while True:
        received = signal.sigwait(_AWAITED)
        if received != signal.SIGCHLD:
            return 128 + received
        status = _reap().get(server)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _reap() -> dict[int, int]:
    """The wait status of the children that ended, by process id, adopted ones included."""
    ended = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def _end_all(grace: float) -> None:
    """Sends SIGTERM to every descendant, and SIGKILL to those left after `grace` seconds, until there is none."""
    deadline = time.monotonic() + grace
    _send(signal.SIGTERM)
    while psutil.Process().children():
        _reap()
        if time.monotonic() >= deadline:
            _send(signal.SIGKILL)
        time.sleep(0.02)


def _send(number: signal.Signals) -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended, or may not be signalled
            process.send_signal(number)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
