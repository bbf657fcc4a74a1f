"""Makes SIGTERM end a job the way Ctrl-C does, so that its drafts and temporary folders are removed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RESEND_SECONDS = 5.0
"""Time after which a job that has not ended gets the signal again. Python drops exceptions that are raised while it
frees an object, so the first SystemExit may be lost."""


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM until the block ends, so that every `with` and `finally` runs.

    A second SIGTERM during the clean-up is ignored (`timeout` sends two). Enter this after contexts that take long to
    close: a SIGTERM cannot interrupt their clean-up.
    """
    resends: list[threading.Timer] = []
    is_exiting = False

    def resend(number: int) -> None:
        nonlocal is_exiting
        is_exiting = False
        os.kill(os.getpid(), number)

    def exit_job(number: int, _: object) -> None:
        nonlocal is_exiting
        if is_exiting:
            return
        is_exiting = True
        timer = threading.Timer(RESEND_SECONDS, resend, (number,))
        timer.daemon = True
        timer.start()
        resends.append(timer)
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, exit_job)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if resends else previous)
        for timer in resends:
            timer.cancel()
