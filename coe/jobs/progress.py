"""Shows the progress of long jobs on standard error: a bar on a terminal, a note where work takes long."""

from __future__ import annotations

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

    Yields None where standard error is no terminal.
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
