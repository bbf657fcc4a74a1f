"""Stops Granian's server in a worker process, on SIGTERM."""

from __future__ import annotations

import signal
import threading

from granian import _signals
from granian._granian import WorkerSignal
from uvloop import Loop


class Stop:
    """Replaces Granian's own handler, which blocks the process for ever when SIGTERM arrives before the server runs, or
    a second time: a process group, a service manager and the parent may each send one. Create it before the server.
    """

    def __init__(self) -> None:
        self.serving = threading.Event()
        """Set once the server runs."""
        self._requested = False
        self._stopped = False
        self._server = WorkerSignal()
        _signals.set_loop_signals = self._install

    def allow(self) -> None:
        """Report that the server runs. A SIGTERM that came before stops it now."""
        self.serving.set()
        self._stop()

    def _install(self, loop: Loop) -> WorkerSignal:
        """What Granian calls in place of its own function."""
        loop.add_signal_handler(signal.SIGTERM, self._request)
        return self._server

    def _request(self) -> None:
        self._requested = True
        self._stop()

    def _stop(self) -> None:
        if self._requested and self.serving.is_set() and not self._stopped:
            self._stopped = True
            self._server.set()
