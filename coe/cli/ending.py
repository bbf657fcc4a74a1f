"""SIGTERM to a job: it leaves as it does after Ctrl-C, and what it had in temporary folders and drafts goes with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN = 5.0
"""Seconds after which a job that has not left is told again: Python ignores what is raised while it frees an object."""


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Until the block ends, SIGTERM ends the process through every `with` and `finally` under way. To be entered after
    what is to be put away, which no second SIGTERM interrupts then (`timeout` sends two)."""
    reminders: list[threading.Timer] = []

    def leave(number: int, _: object) -> None:
        reminder = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
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
