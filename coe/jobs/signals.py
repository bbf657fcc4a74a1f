"""SIGTERM to a job: it leaves as it does after Ctrl-C, and what it had in temporary folders and drafts goes with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RESEND_SECONDS = 5.0
"""Seconds after which a job that has not left is told again: Python ignores what is raised while it frees an object."""


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Until the block ends, SIGTERM ends the process through every `with` and `finally` under way, which a second one
    at its heels does not interrupt (`timeout` sends two). Better entered after what takes long to put away: no later
    one interrupts that."""
    reminders: list[threading.Timer] = []
    leaving = False

    def remind(number: int) -> None:
        nonlocal leaving
        leaving = False
        os.kill(os.getpid(), number)

    def leave(number: int, _: object) -> None:
        nonlocal leaving
        if leaving:
            return
        leaving = True
        reminder = threading.Timer(RESEND_SECONDS, remind, (number,))
        reminder.daemon = True
        reminder.start()
        reminders.append(reminder)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if reminders else before)
        for reminder in reminders:
            reminder.cancel()
