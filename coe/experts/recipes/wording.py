"""Normalizes the wording of answers, in any script."""

from __future__ import annotations

import re
import unicodedata

MAX_READ_CHARACTERS = 50_000
"""Characters at the end of an answer that are searched for its final letter, number or text."""

# Letters of Latin, Greek and Cyrillic, whose words stand between spaces; and those of other scripts.
SPACED = "0-9A-Za-z\u00c0-\u052f\u1e00-\u1fff"
UNSPACED = rf"[^\W_{SPACED}]"


def normalised(text: str) -> str:
    """The text case-folded, with white space collapsed and punctuation stripped at both ends, except in -3, 5% and
    C#."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    start, end = 0, len(folded)
    while start < end and _is_edge(folded[start]) and not _MINUS.match(folded, start):
        start += 1
    while end > start and _is_edge(folded[end - 1]) and folded[end - 1] not in "%#":
        end -= 1
    return folded[start:end]


_MINUS = re.compile(r"-[\d.]")


def _is_edge(character: str) -> bool:
    return character in " `~" or unicodedata.category(character)[0] == "P"
