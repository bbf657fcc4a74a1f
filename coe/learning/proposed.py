"""A proposed category as an entry for experts.yaml: its exemplars, and a name and description to be mended."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

WORDS = 3
"""Telling words in a proposed description."""
EXAMPLE = 300
"""Characters of an exemplar."""
_WORD = re.compile(r"[a-z]{4,24}")


def as_declared(exemplars: Sequence[str], others: Sequence[str]) -> str:
    """YAML to paste under `categories`, from prompts that show what it is and prompts of all kinds."""
    words = telling(exemplars, others)
    name = "-".join(words[:2]) or "new-category"
    about = (
        f"Requests about {', '.join(words)} (say it better)" if words else "Say here what these requests have in common"
    )
    lines = [f"- name: {name}", f"  description: {_quoted(about)}", "  examples:"]
    return "\n".join([*lines, *(f"    - {_quoted(text[:EXAMPLE])}" for text in exemplars)]) + "\n"


def telling(inside: Sequence[str], outside: Sequence[str]) -> list[str]:
    """The words, at most WORDS, that most of `inside` have and few of `outside`."""
    own, other = (
        Counter(word for text in texts for word in set(_WORD.findall(text.lower()))) for texts in (inside, outside)
    )
    lift = {word: count / len(inside) - other[word] / max(len(outside), 1) for word, count in own.items() if count > 1}
    return sorted((word for word in lift if lift[word] > 0), key=lambda word: (-lift[word], word))[:WORDS]


def _quoted(text: str) -> str:
    """As a JSON string, which YAML reads too."""
    return json.dumps(text, ensure_ascii=False)
