"""Ends a worker process whose parent has died, even by SIGKILL, so that the port is free for the next start."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

from gateway.process.signals import CUT

CHECK_EVERY = 0.5
"""Seconds between two checks of the parent."""
FINISH = 5.0
"""Seconds that answers under way have to end after the parent's death."""
WRITE = 10.0
"""Seconds after that to write the records; then the process ends at once."""
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, serving: threading.Event) -> None:
    """End this process when the process `parent` dies: close the listener, finish answers, write records, exit. Before
    `serving` is set, exit at once.

    On Linux the kernel sends SIGTERM at once. A thread checks the parent's id everywhere, and bounds how long the end
    takes. Call it from the main thread, once, before anything that may block.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
    threading.Thread(target=_watch, args=(parent, serving), name="coe-parent", daemon=True).start()


def _watch(parent: int, serving: threading.Event) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_EVERY)
    if not serving.is_set():
        os._exit(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(FINISH)
    os.kill(os.getpid(), CUT)
    time.sleep(WRITE)
    os._exit(1)
