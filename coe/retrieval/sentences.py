"""Where sentences end, in every script; a blank line always ends one."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]
"""Start and end in characters; the white space after a sentence belongs to it."""
LONGEST = 20_000
"""Characters of a paragraph that are looked at together."""
_PARAGRAPH = re.compile(r".*?(?:\n[ \t]*\n\s*|\Z)", re.DOTALL)


def sentences(text: str) -> Iterator[Span]:
    """The sentences of `text` in order; together they are all of it. Abbreviations are known in English."""
    from sentencex import segment

    for paragraph in _PARAGRAPH.finditer(text):
        for start in range(*paragraph.span(), LONGEST):
            end = min(start + LONGEST, paragraph.end())
            at = start
            for sentence in segment("en", text[start:end]):
                yield at, min(at + len(sentence), end)
                at += len(sentence)
            if at < end:
                yield at, end


def lines(text: str, span: Span) -> Iterator[Span]:
    """The lines of a part of `text`, each with the break after it."""
    start, end = span
    while start < end:
        stop = text.find("\n", start, end) + 1 or end
        yield start, stop
        start = stop
