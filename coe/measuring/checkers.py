"""Checkers: pure functions that score an answer against its reference, in [0, 1].

Answers are free text in many languages. `coe.recipes` finds the letter or the number that an answer settles on.

Constraints on the form of an answer: counts, required and forbidden words, order, layout and case.

They check instructions that have no single right answer, such as a poem of four lines without the letter e. Each
constraint is a key of the probe's `constraints`; an answer passes when it meets all of them. Pure functions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

import orjson
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model

from coe.recipes.final_answers import (
    MAX_READ_CHARACTERS,
    SPACED,
    chosen,
    fenced_blocks,
    json_form,
    last_number,
    normalised,
    without_reasoning,
)

TOLERANCE = 1e-4
"""Default relative error of a numeric answer; two whole numbers must be equal."""
MAX_OPENINGS = 1_000
"""Opening brackets without JSON that are tried."""


def exact(answer: str, reference: str) -> float:
    """1.0 when both are the same text but for case, runs of white space, and punctuation at the ends."""
    return float(normalised(answer) == normalised(reference))


def contains(answer: str, reference: str) -> float:
    """1.0 when the reference occurs in the answer as whole words; in scripts that write without spaces, anywhere."""
    expected = normalised(reference)
    before = rf"(?<![{SPACED}])" if re.match(f"[{SPACED}]", expected) else ""
    after = rf"(?![{SPACED}])" if re.search(f"[{SPACED}]$", expected) else ""
    return float(re.search(before + re.escape(expected) + after, normalised(answer)) is not None)


def choice(answer: str, reference: str) -> float:
    """1.0 when the answer's final letter is the reference's, A to J."""
    return float(chosen(answer) == chosen(reference))


def numeric(answer: str, reference: str, *, tolerance: float = TOLERANCE) -> float:
    """1.0 when the answer's last number is the reference's, within a relative tolerance.

    A number with a percent sign counts as written and as its hundredth, since references are given either way.
    """
    found, expected = last_number(answer), last_number(reference)
    return float(any(_close(a, b, tolerance) for a in found for b in expected))


def same_json(answer: str, reference: str) -> float:
    """1.0 when the JSON in an answer has the reference's values: the last object, or list, as the reference is one, of
    the last fenced block or else of the answer. Objects and lists inside others do not count."""
    blocks = list(fenced_blocks(answer))
    text = blocks[-1].text if blocks else answer
    expected = json_form(reference.strip())
    return float(expected is not None and _last_json(text[-MAX_READ_CHARACTERS:], expected[0]) == expected)


def _last_json(text: str, opening: str) -> str | None:
    """Return the form of the last JSON value that begins with `opening` and is not part of another one."""
    found, place, failed = None, 0, 0
    while failed < MAX_OPENINGS and (bracket := _OPENING.search(text, place)):
        place = bracket.start()
        try:
            _, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            place, failed = place + 1, failed + 1
            continue
        found = json_form(text[place:end]) if text[place] == opening else found
        place = end
    return found


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_OPENING = re.compile(r"[\[{]")
_DECODER = json.JSONDecoder(parse_constant=_no_json)


def _close(value: float, expected: float, tolerance: float) -> bool:
    if value.is_integer() and expected.is_integer() and tolerance <= TOLERANCE:
        return value == expected
    return math.isclose(value, expected, rel_tol=tolerance, abs_tol=1e-12)


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
