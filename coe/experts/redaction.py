"""Removes secrets from what a server wrote, and bounds it: one line, fit for an error message or a log."""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_CHARACTERS = 500
"""Characters of a redacted line."""
_MAX_INPUT = 4096
"""Characters of a text that are read at all."""
_URL = re.compile(
    r"\b([a-z][a-z0-9+.-]{1,15}://)(?:[^\s/?#@\"'<>]*@)?([^\s?#\"'<>]*)(?:[?#][^\s\"'<>]*)?", re.IGNORECASE
)
_LABELLED = re.compile(
    r"(\b(?:bearer|basic|token|secret|password|(?:x-)?api[-_ ]?key)\b(?:\s+provided)?[\"']?\s*[:=]?\s*[\"']?)"
    r"(?=[^\s\"',;]*\d)[^\s\"',;]{8,}",
    re.IGNORECASE,
)
_KEYS = re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|coe|ghp|glpat)[-_][A-Za-z0-9_*.-]{6,}|\bAIza[\w-]{10,}|\beyJ[\w.-]{20,}")
_OPAQUE = re.compile(r"\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}\b")
_HIDDEN = "***"


def redacted(text: str, *, secrets: Iterable[str] = ()) -> str:
    """Return one bounded line without `secrets`, credentials and queries of URLs, and what looks like an API key."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    text = text[:_MAX_INPUT]
    text = _URL.sub(r"\1\2", text)
    text = _LABELLED.sub(rf"\1{_HIDDEN}", text)
    text = _OPAQUE.sub(_HIDDEN, _KEYS.sub(_HIDDEN, text))
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_CHARACTERS]
