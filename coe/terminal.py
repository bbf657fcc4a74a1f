"""Text on terminals and in logs, and jobs in the foreground.

File names, responses and errors of servers may hold characters that control the terminal or forge a log line. The
command line prints through here, which escapes them, except tables and progress bars; its log lines are formatted here.

A job shows its progress as a bar on a terminal, and as a note where work takes long. SIGTERM ends it as Ctrl-C does, so
that its drafts and temporary folders are removed.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from coe import json_text

_UNESCAPED = "\n\t"
_RANGES = (
    (0x00, 0x1F),  # C0: ESC begins escape sequences, a carriage return overwrites the line
    (0x7F, 0x9F),  # DEL and C1
    (0x2028, 0x202E),  # line and paragraph separators; bidirectional embeddings and overrides
    (0x2066, 0x2069),  # bidirectional isolates
    (0xD800, 0xDFFF),  # surrogates, for bytes of a file name that are not UTF-8
)
_ESCAPES = {code: f"\\u{code:04x}" for first, last in _RANGES for code in range(first, last + 1)}
_ESCAPES = {code: escape for code, escape in _ESCAPES.items() if chr(code) not in _UNESCAPED}
INDENT = "\n  "
"""Prefix of continuation lines of a log message, so that no text can pass for a new log line."""


def printable(text: str) -> str:
    """Escape control characters as `\\u001b`, except line breaks and tabs. The value of a JSON text does not change."""
    return text if text.isprintable() else text.translate(_ESCAPES)


def dollars(amount: float) -> str:
    """An amount of US dollars for readers, as in $1,235, $12.35, $0.00012 and -$3."""
    size = abs(amount)
    return f"{'-' if amount < 0 else ''}${f'{size:,.0f}' if size >= 1000 else f'{size:.4g}'}"


class PrintableFormatter(logging.Formatter):
    """Formats a log record, escapes control characters, and indents continuation lines."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", INDENT)


def print_line(text: str) -> None:
    """Print a line to standard output and flush it."""
    print_part(f"{text}\n")


def print_part(text: str) -> None:
    """Print a part of a line to standard output and flush it."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def print_error(text: str) -> None:
    """Print a line to standard error."""
    sys.stderr.write(printable(f"{text}\n"))
    sys.stderr.flush()


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    print_line(json_text.dumps(value).decode())


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
