"""One server process under its supervisor: started without waiting, stopped with all its descendants.

The supervisor ends its server even if `coe up` dies by SIGKILL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

from coe.errors import FleetError
from coe.fleet import supervisor
from coe.fleet.specs import ServerSpec, is_free

_POLL_INTERVAL = 0.05
"""Seconds between two checks of a child process."""
_KILL_TIMEOUT = 5.0
"""Seconds for the supervisor's SIGKILLs after its grace period."""


class ServerProcess:
    """A started server. Await `stop()` to its end; until then the server may still run.

    Nothing awaits between the fork and the return of the object, so no cancellation can lose a started process.
    """

    def __init__(self, spec: ServerSpec, *, grace: float, keep_log: bool = False) -> None:
        """Starts it, with an empty log unless `keep_log`. Raises FleetError if the port is taken or the start fails."""
        if not is_free(spec.port, host=spec.host):
            raise FleetError(
                f"server {spec.key!r}: port {spec.port} of {spec.host} is in use; "
                "stop the process that listens there, or start again so that another port is chosen"
            )
        self._key, self._grace = spec.key, grace
        command = [sys.executable, "-P", supervisor.__file__, str(os.getpid()), str(grace), *spec.argv]
        try:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            if not keep_log:
                spec.log.write_bytes(b"")
            with spec.log.open("ab") as log:  # appending, so that truncate_log works under the writer
                self._supervisor = subprocess.Popen(  # noqa: S603  the declared command line
                    command,
                    env=os.environ | dict(spec.env),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches only this process, which stops the servers
                )
        except OSError as error:
            raise FleetError(f"server {spec.key!r} cannot be started: {error}") from error

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + N after signal N."""
        code = self._supervisor.poll()
        return code if code is None or code >= 0 else 128 - code

    async def exited_within(self, seconds: float) -> int | None:
        """The exit code once the server and all its processes have ended; None if it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        # Polled: asyncio's child watchers depend on the loop, on threads and on other reapers.
        while (code := self.exit_code) is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL)
        return code

    async def stop(self) -> None:
        """Ends it and all its descendants: SIGTERM, and SIGKILL after the grace period. Call it again if it was
        cancelled.

        Raises FleetError if even SIGKILL does not end them (a process stuck in the kernel).
        """
        self._supervisor.terminate()
        if await self.exited_within(self._grace + _KILL_TIMEOUT) is None:
            raise FleetError(
                f"server {self._key!r} cannot be ended (process {self._supervisor.pid}); restart the machine"
            )


def describe_exit(code: int) -> str:
    """Describes an exit code in words."""
    if code == 128 + signal.SIGKILL:
        return "was killed by SIGKILL, perhaps because memory ran out"
    if code > 128 and code - 128 in set(signal.Signals):
        return f"was killed by {signal.Signals(code - 128).name}"
    return f"exited with code {code}"
