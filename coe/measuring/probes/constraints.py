"""Constraints on the form of an answer: counts, required and forbidden words, order, layout and case.

They check instructions that have no single right answer, such as a poem of four lines without the letter e. Each
constraint is a key of the probe's `constraints`; an answer passes when it meets all of them. Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model

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
    """Return the problem of the `constraints` of a probe; None for valid ones."""
    if not constraints:
        return f"checker 'constraints' needs `constraints`: an object with some of {', '.join(_CONSTRAINTS)}"
    try:
        _MODEL.model_validate(constraints)
    except ValidationError as error:
        first = error.errors()[0]
        return f"`constraints.{first['loc'][0]}`: {first['msg']}"
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


def _within(count: int, wanted: int | Sequence[int]) -> bool:
    return count == wanted if isinstance(wanted, int) else wanted[0] <= count <= wanted[1]


# ------------------------------------------------------------------------------------------- what occurs, and how


def _has_word(text: str, forms: str | Sequence[str]) -> bool:
    each = [forms] if isinstance(forms, str) else forms
    return any(contains(text, form.translate(_STRAIGHT)) for form in each)


def _occur_in_order(text: str, wanted: Sequence[str]) -> bool:
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


def _in_order(limits: list[int]) -> list[int]:
    if limits[0] > limits[1]:
        raise ValueError("must be [least, most]")
    return limits


def _with_words(text: str) -> str:
    if not normalised(text):
        raise ValueError("must not be only punctuation")
    return text


_Natural = Annotated[int, Field(ge=0)]
_Count = _Natural | Annotated[list[_Natural], Field(min_length=2, max_length=2), AfterValidator(_in_order)]
_Counts = Annotated[list[_Natural], Field(min_length=1)]
_Text = Annotated[str, AfterValidator(_with_words)]
_Texts = Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=1)]
_Words = Annotated[list[_Text], Field(min_length=1)]
_Forms = Annotated[list[_Text | _Words], Field(min_length=1)]
_Case = Literal["lower", "upper"]

_CONSTRAINTS: Mapping[str, tuple[Callable[[str, Any], bool], Any]] = {
    "words": (lambda text, wanted: _within(_words(text), wanted), _Count),
    "sentences": (lambda text, wanted: _within(len(_sentences(text)), wanted), _Count),
    "lines": (lambda text, wanted: _within(len(_lines(text)), wanted), _Count),
    "paragraphs": (lambda text, wanted: _within(len(re.split(r"\n[ \t]*\n\s*", text)), wanted), _Count),
    "line_words": (lambda text, wanted: all(_within(_words(line), wanted) for line in _lines(text)), _Count),
    "words_by_line": (lambda text, wanted: [_words(line) for line in _lines(text)] == wanted, _Counts),
    "words_by_sentence": (lambda text, wanted: [_words(one) for one in _sentences(text)] == wanted, _Counts),
    "includes": (lambda text, wanted: all(_has_word(text, forms) for forms in wanted), _Forms),
    "excludes": (lambda text, wanted: not _has_word(text, wanted), _Words),
    "without": (lambda text, wanted: not any(one.casefold() in text.casefold() for one in wanted), _Texts),
    "order": (_occur_in_order, _Texts),
    "occurrences": (_occurs, Annotated[dict[str, _Count], Field(min_length=1)]),
    "initials": (_has_initials, _Text),
    "starts_with": (lambda text, wanted: normalised(text).startswith(normalised(wanted)), _Text),
    "ends_with": (lambda text, wanted: normalised(text).endswith(normalised(wanted)), _Text),
    "format": (_is_list_of, Literal["bullets", "numbered"]),
    "keys": (_has_keys, _Texts),
    "case": (lambda text, wanted: text == (text.lower() if wanted == "lower" else text.upper()), _Case),
}
"""By key of `constraints`: whether a text meets it, and the type of its value."""
_FIELDS: dict[str, Any] = {name: (form | None, None) for name, (_, form) in _CONSTRAINTS.items()}
_MODEL = create_model("Constraints", __config__=ConfigDict(extra="forbid", strict=True), **_FIELDS)
