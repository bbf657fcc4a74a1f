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
        words: list[str] = []
        redirected = False
        for word in _words(line):
            if _SEPARATORS.fullmatch(word):
                yield from _command(words)
                words = []
            elif set(word) <= set("<>&"):
                redirected = True
            elif redirected:
                redirected = False
            else:
                words.append(word)
        yield from _command(words)


def _lines(text: str) -> Iterator[str]:
    """Logical lines: continued ones joined, and those with an open quotation."""
    held = ""
    for line in text.splitlines():
        held += line.removeprefix("$ ") if not held else line
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


def _command(words: list[str]) -> Iterator[list[str]]:
    rest = list(words)
    while rest and (_ASSIGNMENT.match(rest[0]) or rest[0] in _WRAPPERS):
        rest.pop(0)
    if rest:
        yield rest
