"""One server process under its warden: started without waiting, stopped with its whole tree.

Finds and ends what a killed predecessor left running: every process of a fleet carries its mark in its environment.

A warden ends its server when `coe up` dies, even by SIGKILL; this is for what got away all the same, such as the
workers of a server whose warden was killed too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from coe.errors import FleetError
from coe.fleet import supervisor
from coe.fleet.ports import is_free
from coe.fleet.specs import ServerSpec

MARK = "COE_FLEET"
PATIENCE = 5.0
"""Seconds to end by themselves, before SIGKILL."""


def mark(logs: Path) -> dict[str, str]:
    """What the processes of this process's fleet carry: whose they are, by the folder of their logs."""
    me = psutil.Process()
    return {MARK: f"{me.pid}:{me.create_time():.2f}:{logs.absolute()}"}


def end_leftovers(logs: Path) -> list[str]:
    """End the processes of earlier fleets with the same folder of logs whose own process is gone; their names and ids.
    Those of a fleet that still runs are left alone."""
    found = list(_leftovers(str(logs.absolute())))
    names = [f"{process.info['name']} ({process.pid})" for process in found]
    for process in found:
        _signal(process, kill=False)
    _, stubborn = psutil.wait_procs(found, PATIENCE)
    for process in stubborn:
        _signal(process, kill=True)
    psutil.wait_procs(stubborn, PATIENCE)
    return names


def _leftovers(logs: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["name"]):
        try:
            pid, began, whose = process.environ().get(MARK, "::").split(":", 2)
        except (psutil.Error, ValueError):  # it has just ended, or is not ours to read
            continue
        if whose == logs and process.pid != os.getpid() and not _lives(int(pid), began):
            yield process


def _lives(pid: int, began: str) -> bool:
    try:
        process = psutil.Process(pid)
        return f"{process.create_time():.2f}" == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        process.kill() if kill else process.terminate()
    except psutil.Error:  # it has just ended
        return


_POLL = 0.05
"""Seconds between two looks at a child."""
_BEYOND_GRACE = 5.0
"""Seconds the warden has for the SIGKILLs after its grace."""


class ServerProcess:
    """A started server. `stop()` must be awaited to its end; until then the server may still run.

    Nothing here awaits between fork and the returned object, so that no cancellation can lose a started process.
    """

    def __init__(self, spec: ServerSpec, *, grace: float, keep_log: bool = False) -> None:
        """Start it, with an empty log unless `keep_log`. Raises FleetError when the port is taken or nothing starts."""
        if not is_free(spec.port, host=spec.host):
            raise FleetError(
                f"server {spec.key!r}: port {spec.port} of {spec.host} is in use; "
                "stop the process that listens there, or start again so that another port is chosen"
            )
        self._key, self._grace = spec.key, grace
        command = [sys.executable, "-P", supervisor.__file__, str(os.getpid()), str(grace), *spec.command]
        try:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            if not keep_log:
                spec.log.write_bytes(b"")
            with spec.log.open("ab") as log:  # appending is what lets logs.cap cut it under the writer
                self._warden = subprocess.Popen(  # noqa: S603  the declared command line
                    command,
                    env=os.environ | dict(spec.env) | mark(spec.log.parent),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C in the terminal reaches us, and we stop the servers
                )
        except OSError as error:
            raise FleetError(f"server {spec.key!r} cannot be started: {error}") from error

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + N after signal N."""
        code = self._warden.poll()
        return code if code is None or code >= 0 else 128 - code

    async def exited_within(self, seconds: float) -> int | None:
        """The exit code once the server has ended, and every process it started with it; None if it still runs."""
        deadline = time.monotonic() + seconds
        # Asked, not signalled: asyncio's child watchers depend on the loop, on threads and on who else reaps.
        while (code := self.exit_code) is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL)
        return code

    async def stop(self) -> None:
        """End it and all its descendants: SIGTERM, SIGKILL after the grace. Repeat it when it was cancelled.

        Raises FleetError when even SIGKILL does not end them (a process stuck in the kernel).
        """
        self._warden.terminate()
        if await self.exited_within(self._grace + _BEYOND_GRACE) is None:
            self._kill()
            if await self.exited_within(_BEYOND_GRACE) is None:
                raise FleetError(
                    f"server {self._key!r} cannot be ended (process {self._warden.pid}); restart the machine"
                )

    def _kill(self) -> None:
        """For a warden that hangs: end its tree from here."""
        with suppress(psutil.Error):
            top = psutil.Process(self._warden.pid)
            for process in [*top.children(recursive=True), top]:
                with suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code == 128 + signal.SIGKILL:
        return "was killed by SIGKILL, perhaps for want of memory"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"exited with code {code}"
