"""Constraints on the form of an answer: counts, required and forbidden words, order, layout and case.

They check instructions that have no single right answer, such as a poem of four lines without the letter e. Each
constraint is a key of the probe's `constraints`; an answer passes when it meets all of them. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import orjson

from coe.measuring.checkers import contains
from coe.recipes.final_answers.answers import without_reasoning
from coe.recipes.final_answers.programs import fenced_blocks
from coe.recipes.final_answers.wording import MAX_READ_CHARACTERS, normalised

_WORD = re.compile(r"[^\W\d_](?:\.[^\W\d_]){1,9}(?!\w)\.?|\w+(?:(?:['’-]|(?<=\d)[.:,](?=\d))\w+){0,9}")
"""An abbreviation of single letters such as p.m., or a word; 3:00, 1,000 and 2.5 are words."""
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)*_]{0,3}(?=\s|\Z)|[。！？]")
_TITLE = re.compile(r"\b(?:Dr|Mrs?|Ms|Prof|St)\.\Z")
_LOWER_CASE_NEXT = re.compile(r"[ \t]+[\"'“‘(*_]{0,3}([^\W\d_])")
_STRAIGHT = str.maketrans("‘’", "''")
_BULLET = re.compile(r"[-*•]\s")
_NUMBER = re.compile(r"(\d{1,3})[.)]\s")


def meets(answer: str, constraints: Mapping[str, Any]) -> float:
    """1.0 when an answer meets all constraints. An empty answer meets none.

    Its reasoning, bold marks and a fence around the whole answer do not count; curly apostrophes are straight ones.
    """
    text = without_reasoning(answer)[:MAX_READ_CHARACTERS]
    blocks = list(fenced_blocks(text))
    if len(blocks) == 1 and text.startswith(("```", "~~~")) and blocks[0].end >= len(text) - 4:
        text = blocks[0].text
    text = text.replace("**", "").translate(_STRAIGHT).strip()
    return float(bool(text) and all(_CONSTRAINTS[name][0](text, wanted) for name, wanted in constraints.items()))


def problem_in(constraints: Any) -> str | None:
    """Return the problem of the `constraints` of a probe, and the remedy; None for valid ones."""
    if not isinstance(constraints, dict) or not constraints:
        return f"checker 'constraints' needs `constraints`: an object with some of {', '.join(_CONSTRAINTS)}"
    for name, wanted in constraints.items():
        if name not in _CONSTRAINTS:
            close = get_close_matches(str(name), _CONSTRAINTS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(_CONSTRAINTS)}"
            return f"`constraints` has the unknown key {name!r}{hint}"
        is_valid, form = _CONSTRAINTS[name][1]
        if not is_valid(wanted):
            return f"`constraints.{name}` must be {form}"
    return None


# ------------------------------------------------------------------------------------------------- what is counted


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _words(text: str) -> int:
    return sum(1 for _ in _WORD.finditer(text))


def _sentences(text: str) -> list[str]:
    """Return the sentences; what follows the last end of a sentence counts as one if it has a word.

    A title such as Dr. ends none, and a lower-case letter begins none, except in a text without capitals.
    """
    has_capitals = text != text.lower()
    sentences, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        is_title = _TITLE.search(text, max(0, end.start() - 5), end.start() + 1)
        following = _LOWER_CASE_NEXT.match(text, end.end()) if has_capitals else None
        if not is_title and (following is None or not following[1].islower()):
            sentences.append(text[start : end.end()])
            start = end.end()
    return [*sentences, text[start:]] if _WORD.search(text, start) else sentences


def _paragraphs(text: str) -> int:
    return len([part for part in re.split(r"\n[ \t]*\n", text) if part.strip()])


def _within(count: int, wanted: int | Sequence[int]) -> bool:
    return count == wanted if isinstance(wanted, int) else wanted[0] <= count <= wanted[1]


# ------------------------------------------------------------------------------------------- what occurs, and how


def _has_word(text: str, forms: str | Sequence[str]) -> bool:
    each = [forms] if isinstance(forms, str) else forms
    return any(contains(text, form.translate(_STRAIGHT)) for form in each)


def _in_order(text: str, wanted: Sequence[str]) -> bool:
    folded, place = " ".join(text.casefold().split()), 0
    for one in wanted:
        if (start := folded.find(one.casefold(), place)) < 0:
            return False
        place = start + len(one)
    return True


def _occurs(text: str, wanted: Mapping[str, int | Sequence[int]]) -> bool:
    words = [match[0].casefold() for match in _WORD.finditer(text)]
    return all(_within(words.count(word.casefold()), count) for word, count in wanted.items())


def _has_initials(text: str, wanted: str) -> bool:
    firsts = [match[0][0] for line in _lines(text) if (match := _WORD.search(line))]
    return "".join(firsts).casefold() == wanted.casefold()


def _is_list_of(text: str, layout: str) -> bool:
    lines = _lines(text)
    if layout == "bullets":
        return all(_BULLET.match(line) for line in lines)
    numbers = [match[1] if (match := _NUMBER.match(line)) else "" for line in lines]
    return numbers == [str(number) for number in range(1, len(lines) + 1)]


def _has_keys(text: str, wanted: Sequence[str]) -> bool:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(value, dict) and sorted(value) == sorted(wanted)


# ------------------------------------------------------------------------------------------------- how they are given


def _is_count(wanted: Any) -> bool:
    if type(wanted) is int:
        return wanted >= 0
    return _is_counts(wanted) and len(wanted) == 2 and wanted[0] <= wanted[1]


def _is_counts(wanted: Any) -> bool:
    return isinstance(wanted, list) and bool(wanted) and all(type(one) is int and one >= 0 for one in wanted)


def _is_text(wanted: Any) -> bool:
    return isinstance(wanted, str) and bool(normalised(wanted))


def _is_texts(wanted: Any) -> bool:
    return isinstance(wanted, list) and bool(wanted) and all(isinstance(one, str) and one.strip() for one in wanted)


def _is_words(wanted: Any) -> bool:
    return _is_texts(wanted) and all(map(_is_text, wanted))


def _is_forms(wanted: Any) -> bool:
    return isinstance(wanted, list) and bool(wanted) and all(_is_text(one) or _is_words(one) for one in wanted)


_Form = tuple[Callable[[Any], bool], str]
_COUNT: _Form = (_is_count, "a whole number, or [least, most]")
_COUNTS: _Form = (_is_counts, "a list of whole numbers")
_TEXT: _Form = (_is_text, "text that is not only punctuation")
_TEXTS: _Form = (_is_texts, "a list of texts")
_WORDS: _Form = (_is_words, "a list of texts that are not only punctuation")
_FORMS: _Form = (_is_forms, "a list of texts, each of which may be a list of equivalent ones")
_BY_WORD: _Form = (
    lambda wanted: isinstance(wanted, dict) and bool(wanted) and all(map(_is_count, wanted.values())),
    "an object of words and their counts, each a whole number or [least, most]",
)
_LAYOUT: _Form = (lambda wanted: wanted in ("bullets", "numbered"), "bullets or numbered")
_CASE: _Form = (lambda wanted: wanted in ("lower", "upper"), "lower or upper")

_CONSTRAINTS: Mapping[str, tuple[Callable[[str, Any], bool], _Form]] = {
    "words": (lambda text, wanted: _within(_words(text), wanted), _COUNT),
    "sentences": (lambda text, wanted: _within(len(_sentences(text)), wanted), _COUNT),
    "lines": (lambda text, wanted: _within(len(_lines(text)), wanted), _COUNT),
    "paragraphs": (lambda text, wanted: _within(_paragraphs(text), wanted), _COUNT),
    "line_words": (lambda text, wanted: all(_within(_words(line), wanted) for line in _lines(text)), _COUNT),
    "words_by_line": (lambda text, wanted: [_words(line) for line in _lines(text)] == wanted, _COUNTS),
    "words_by_sentence": (lambda text, wanted: [_words(one) for one in _sentences(text)] == wanted, _COUNTS),
    "includes": (lambda text, wanted: all(_has_word(text, forms) for forms in wanted), _FORMS),
    "excludes": (lambda text, wanted: not _has_word(text, wanted), _WORDS),
    "without": (lambda text, wanted: not any(one.casefold() in text.casefold() for one in wanted), _TEXTS),
    "order": (_in_order, _TEXTS),
    "occurrences": (_occurs, _BY_WORD),
    "initials": (_has_initials, _TEXT),
    "starts_with": (lambda text, wanted: normalised(text).startswith(normalised(wanted)), _TEXT),
    "ends_with": (lambda text, wanted: normalised(text).endswith(normalised(wanted)), _TEXT),
    "format": (_is_list_of, _LAYOUT),
    "keys": (_has_keys, _TEXTS),
    "case": (lambda text, wanted: text == (text.lower() if wanted == "lower" else text.upper()), _CASE),
}
"""By key of `constraints`: whether a text meets it, and the form of its value."""
