"""What the words of a question say about whether a document would help, without any model: a few yes and no."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

CHARACTERS = 512
"""Of a text that are read."""
_ASKED = (
    "who",
    "when",
    "where",
    "what",
    "which",
    "how many|how much|how long|how old",
    "how|why",
    "is|are|was|were|does|did|do|can|has|have",
    "song|sang|sings|sing|album|band|movie|film|show|season|episode|series|cast|plays|played|actor|voice",
    "first|last|most|largest|biggest|highest|oldest|longest",
    "new|next|current|currently|latest|now|today|recent",
    "name|called|term|mean|meaning|definition|known",
    "book|author|wrote|written",
    "world|country|state|city|capital|located|river|island",
    "won|win|cup|nba|nfl|game|team|super bowl|final|championship",
    "amendment|constitution|president|law|court|war|act|treaty|king|queen",
    "cell|cells|dna|body|blood|muscle|bone|protein|water|energy|patient|patients|disease",
    "write|explain|list|create|solve|translate|summarise|summarize|function|code",
)
_PATTERNS = tuple(re.compile(rf"\b(?:{words})\b") for words in _ASKED)
_YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
CUES = len(_PATTERNS) + 5


def cues(text: str) -> NDArray[np.float32]:
    """Shape (CUES,): numbers of about 0 to 1."""
    head = text[:CHARACTERS]
    lower = head.lower()
    words = lower.split()
    count = max(1, len(words))
    found = [float(pattern.search(lower) is not None) for pattern in _PATTERNS]
    found += [min(count, 40) / 40, min(len(lower) / count, 20) / 20]
    found += [float(any(map(str.isdigit, lower))), float(_YEAR.search(lower) is not None), float("?" in lower)]
    return np.array(found, dtype=np.float32)
