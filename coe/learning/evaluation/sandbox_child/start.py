"""Start of a sandboxed process, and the wording of a failure."""

from __future__ import annotations

import json
import os
import sys
from types import TracebackType

from coe.learning.evaluation.sandbox_child.confinement import confine

MAX_WHY = 300
"""Characters of the reason of a failure."""


def detached() -> tuple[int, int]:
    """Confine the process; returns copies of standard input and output, which no longer lead anywhere."""
    limits = json.loads(sys.argv[1])
    copies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    confine(limits)
    os.dup2(nothing, 2)  # only now: a failure until here is reported there
    os.close(nothing)
    return copies


def reason(part: str, text: str, error: BaseException) -> str:
    """The error, and the line of the tests (or else of the answer) where it arose, in one line."""
    if isinstance(error, SystemExit):
        return f"the {part} left the interpreter (sys.exit)"
    line = _line_in(part, error.__traceback__) or (error.lineno if isinstance(error, SyntaxError) else None)
    lines = text.splitlines()
    where = f" in line {line} of the {part}" if line else f" in the {part}"
    source = f": {lines[line - 1].strip()}" if line and line <= len(lines) and part == "tests" else ""
    return one_line(f"{described(error)}{where}{source}")


def described(error: BaseException) -> str:
    """The name of an error and its message, where it has one that can be formatted."""
    try:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    except BaseException:  # its own __str__ may be part of the answer
        return type(error).__name__


def one_line(text: str) -> str:
    return " ".join(text[: 10 * MAX_WHY].split())[:MAX_WHY]


def _line_in(part: str, traceback: TracebackType | None) -> int | None:
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == part:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
