"""Normalizes the wording of answers in any script, so that small differences of form do not count.

`answers` compares short answers of a recipe's members by it. The checkers of `coe score` compare an answer with its
reference. Recipes do not compare longer text, because its wording is not evidence of agreement.
"""

from __future__ import annotations

import re
import unicodedata

MAX_READ_CHARACTERS = 50_000
"""Characters at the end of an answer that are searched for its final letter, number or text."""
MAX_STATEMENTS = 50
"""Statements of a kind in them that are read, the last ones: the last that can be read counts."""

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


MAX_SHORT_WORDS = 12
MAX_SHORT_CHARACTERS = 160
"""Limits of a short answer; longer text is free text, whose wording is not evidence of agreement."""

_QUOTES = str.maketrans({"’": "'", "‘": "'"} | dict.fromkeys('"“”«»„`'))
_PARTED = re.compile(r"[,;:!?]+(?=\s|$)|(?<=\d)[,;](?=\S)|\.(?=\s|$)|(?<=[^\W\d])[-‐‑](?=[^\W\d])")
_ARTICLES = re.compile(r"^(?:(?:an?|the)\s+)+(?=\S)|(?<=\s)the\s+(?=\S)")
_LATEX = re.compile(r"\\(?:left|right|displaystyle|[,;!:])|(?<=\\)[dt](?=frac)|[\s$]+")
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]{0,80})\}")
_LATEX_GROUP = re.compile(r"(?<=[\^_])\{(\w)\}")


def text_form(text: str) -> str | None:
    """Return a short text without case, quotes, articles and punctuation between words; None for empty or long text."""
    if len(text) > MAX_SHORT_CHARACTERS:
        return None
    text = _LATEX_TEXT.sub(r"\1", text)
    if re.search(r"[\\^{]", text):
        if text.count("{") != text.count("}"):  # cut off
            return None
        return _LATEX_GROUP.sub(r"\1", _LATEX.sub("", text)).strip(".,") or None
    plain = _PARTED.sub(" ", normalised(text.translate(_QUOTES).replace("**", "")))
    found = _ARTICLES.sub("", normalised(plain))
    return found if found and len(found.split()) <= MAX_SHORT_WORDS else None
