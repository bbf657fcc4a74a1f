"""Runs a job in the foreground: shows its progress on standard error, and ends it cleanly on SIGTERM.

Progress is a bar on a terminal, and a note where work takes long. SIGTERM ends a job as Ctrl-C does, so that its drafts
and temporary folders are removed.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coe.terminal import print_error

NOTE_AFTER_SECONDS = 5.0
"""Time after which `note_if_slow` prints its note."""


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, float], None] | None]:
    """A progress bar on a terminal: yields a function of the stage's name and the share done (0 to 1).

    Yields None where standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda stage, done: bar.update(task, description=stage, completed=done)


@contextmanager
def note_if_slow(work: str) -> Iterator[None]:
    """Print a note that names the work if the block takes longer than NOTE_AFTER_SECONDS."""
    timer = threading.Timer(NOTE_AFTER_SECONDS, print_error, (f"note: {work} takes a while",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM until the block ends, so that every `with` and `finally` runs.

    A second SIGTERM during the clean-up is ignored (`timeout` sends two). Enter this after contexts that take long to
    close: a SIGTERM cannot interrupt their clean-up.
    """

    def exit_job(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, exit_job)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, previous)
