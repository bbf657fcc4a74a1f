"""Classifies the wording of a request: it has its own topic, only asks to continue, or starts with an instruction.

The functions use the word lists of words.toml and read a bounded number of characters.
"""

from __future__ import annotations

import math
import re
import tomllib
from importlib.resources import files

MAX_CHARACTERS = 600
"""Characters that these functions read. A longer text is not a nudge."""
MIN_TOPIC_WORDS = 2
"""Smallest number of content words with which a request is understood without its context."""
MIN_UNSPACED_CHARACTERS = 5
"""Shortest run of Chinese, Japanese or Thai characters that counts as several words."""
UNSPACED_WORD_CHARACTERS = 3
"""Characters of such a run that count as one word."""
MAX_OWN_WORDS = 4
"""Largest number of content words that count towards a new topic."""
TOPIC_SCORE = 5.17
"""Score above which a request opens a topic: a probability of 0.7."""
MAX_COURTESY_CHARACTERS = 80
MIN_LONG_NUDGE_WORDS = 12
MAX_FOREIGN_SHARE = 0.12
"""Largest share of words outside the lists with which a longer message is still a nudge."""

_WORD = re.compile(r"[^\W\d_]+")
_FORMULA = re.compile(r"\w\s{0,2}[=+*/^]\s{0,2}\d|\d\s{0,2}[-+*/^=]\s{0,2}\w")
_NAME = re.compile(r"\d|(?<=[a-z,;:] )[A-Z][a-z]+|(?<=[a-z] )[A-Z]{2,}")
"""A number, or a word with a capital letter within a sentence."""
_UNSPACED = re.compile(rf"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]{{{MIN_UNSPACED_CHARACTERS}}}")


WORDS = {
    name: frozenset(text.split())
    for name, text in tomllib.loads(files("coe.routing").joinpath("words.toml").read_text(encoding="utf-8")).items()
}
"""The lists of words.toml."""
_NUDGING = WORDS["function"] | WORDS["handling"] | WORDS["process"]
"""Words of requests without a topic, and of those to continue."""
_CONTEXTUAL = _NUDGING | WORDS["answer"]
_REFERENCES = WORDS["pointers"] | WORDS["references"]


def has_topic(text: str) -> bool:
    """True if a request is understood without its context: two content words, a formula, or a translation."""
    if instruction(text) in WORDS["translations"]:
        return True
    text = text[:MAX_CHARACTERS].lower()
    own = set(_WORD.findall(text)) - _NUDGING
    return len(own) >= MIN_TOPIC_WORDS or any(found.search(text) for found in (_FORMULA, _UNSPACED))


def opens_topic(text: str, general: float) -> bool:
    """True if the newest request of a conversation has its own topic, so that its context does not matter.

    `general` is the probability of the category `general` for the request alone. The weights are those of a logistic
    regression on conversations whose topic changed or did not (docs/experiments/routed-text.md).
    """
    text = text[:MAX_CHARACTERS]
    said = set(_WORD.findall(text.lower()))
    if not said:
        return False
    own = sum(
        max(1, len(word) // UNSPACED_WORD_CHARACTERS) if _UNSPACED.match(word) else 1 for word in said - _CONTEXTUAL
    )
    has_name = any(found[0].lower() not in _CONTEXTUAL for found in _NAME.finditer(text))
    references = len(said & _REFERENCES) / len(said)
    bounded = min(max(general, 0.001), 0.999)
    score = 2.05 * min(own, MAX_OWN_WORDS) + 2.75 * has_name - 5.3 * references
    return score - 0.17 * math.log(bounded / (1 - bounded)) > TOPIC_SCORE


def refers_to_context(text: str) -> bool:
    """True if a short request is about something that it does not name, as in "clean up the imports"."""
    said = set(_WORD.findall(text[:MAX_CHARACTERS].lower()))
    return not said.isdisjoint(WORDS["pointers"]) or ("the" in said and instruction(text) != "")


def is_nudge(text: str) -> bool:
    """True if a message only asks to continue the task at hand."""
    if len(text) > MAX_CHARACTERS:
        return False
    said = _WORD.findall(text.lower())
    foreign = sum(word not in _NUDGING for word in said)
    return foreign == 0 or (len(said) >= MIN_LONG_NUDGE_WORDS and foreign <= MAX_FOREIGN_SHARE * len(said))


def instruction(text: str) -> str:
    """Return the first word of a text, after courtesies, if it is an instruction; or else an empty text."""
    said = _WORD.findall(text[:MAX_COURTESY_CHARACTERS].lower())
    first = next((word for word in said if word not in WORDS["courtesies"]), "")
    return first if first in WORDS["instructions"] and said[0] != "to" else ""
