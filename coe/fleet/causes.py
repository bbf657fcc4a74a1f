"""Finds, in the log of a server that failed, the line that says why.

It is not the last one: a server of several processes (vLLM) ends with the errors that the first one led to, a hundred
lines further down.
"""

from __future__ import annotations

import re

LONGEST = 600
"""Characters of a cause that are shown."""
_PREFIX = re.compile(r"^(?:\([^)]*\) )*(?:ERROR [^]]*\] ?)?")
_RAISED = re.compile(r"(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt): \S.*")
_USAGE = re.compile(r"(?:\S+: )?error: (\S.*)")
_HEADING = re.compile(r"\d+ validation errors? for ")
"""Pydantic's: the reason stands in the next line."""


def cause(log: str) -> str:
    """The first error that a log tells, in one line; empty where none is recognised."""
    lines = [_PREFIX.sub("", line).strip() for line in log.splitlines()]
    for number, line in enumerate(lines):
        if usage := _USAGE.fullmatch(line):
            return usage[1][:LONGEST]
        if _RAISED.fullmatch(line):
            following = lines[number + 1] if _HEADING.search(line) and number + 1 < len(lines) else ""
            return (following or line)[:LONGEST]
    return ""
