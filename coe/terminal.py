"""Text for terminals and logs: characters that would steer the terminal or forge a line are shown as escapes.

File names, answers, errors of servers and reasons given by people may hold them. Everything that the command line
prints and every line of a log passes through here.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import orjson

_KEPT = "\n\t"
_RANGES = (
    (0x00, 0x1F),  # C0: escape sequences begin with ESC, a carriage return overwrites the line
    (0x7F, 0x9F),  # DEL and C1
    (0x2028, 0x202E),  # line and paragraph separators; embeddings and overrides of the direction of writing
    (0x2066, 0x2069),  # isolates
    (0xD800, 0xDFFF),  # bytes of a file name that are no text
)
_ESCAPES = {code: f"\\u{code:04x}" for first, last in _RANGES for code in range(first, last + 1)}
_ESCAPES = {code: escape for code, escape in _ESCAPES.items() if chr(code) not in _KEPT}
INDENT = "\n  "
"""Begins every further line of a log message, so that no text can look like a line of its own."""


def printable(text: str) -> str:
    """The text with control characters as `\\u001b`; line breaks and tabs stay. Of JSON the value stays the same."""
    return text if text.isprintable() else text.translate(_ESCAPES)


class PrintableFormatter(logging.Formatter):
    """A log line as the format says, printable, and its further lines indented."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", INDENT)


def say(text: str) -> None:
    """Prints a line for people, at once even into a pipe."""
    write(f"{text}\n")


def write(text: str) -> None:
    """Prints a part of a line, at once."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def say_error(text: str) -> None:
    """Prints a line beside the output, for people who redirect it."""
    sys.stderr.write(printable(f"{text}\n"))
    sys.stderr.flush()


def say_json(value: Any) -> None:
    """Prints one JSON document or line."""
    try:
        say(orjson.dumps(value).decode())
    except orjson.JSONEncodeError:  # a file name that is not UTF-8
        say(json.dumps(value))
