"""Splits a shell snippet into simple commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_WRAPPERS = {"sudo", "nice", "env", "time", "exec", "nohup"}
_SEPARATORS = re.compile(r"[|&;()]+")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command, without assignments, wrappers and redirections.

    Raises ValueError for a quotation that is not closed.
    """
    for line in _lines(text):
        command: list[str] = []
        words = iter([*_words(line), ";"])
        for word in words:
            if _SEPARATORS.fullmatch(word):
                while command and (_ASSIGNMENT.match(command[0]) or command[0] in _WRAPPERS):
                    command.pop(0)
                if command:
                    yield command
                command = []
            elif set(word) <= set("<>&"):
                next(words)
            else:
                command.append(word)


def _lines(text: str) -> Iterator[str]:
    """Logical lines: continued ones joined, and those with an open quotation."""
    held = ""
    for line in text.splitlines():
        held += line
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        try:
            _words(held)
        except ValueError:
            held += "\n"
            continue
        yield held
        held = ""
    if held.strip():
        _words(held)
        yield held


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)
