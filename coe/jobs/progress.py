"""What a job that takes long says of itself while it is at work."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from coe.terminal import say_error

NOTE_AFTER_SECONDS = 5.0
"""Seconds that nobody needs to be told of."""


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, float], None] | None]:
    """What a long job tells its stage and the share done, 0 to 1, for a bar on a terminal; None elsewhere."""
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
    """Name the work on standard error where it takes longer than a few seconds."""
    timer = threading.Timer(NOTE_AFTER_SECONDS, say_error, (f"note: {work} takes a while",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
